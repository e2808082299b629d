"""Averages of checkpoints: the numbers by hand, what is refused, and what is chosen."""

import copy

import pytest
import torch

from crate_mm import init_model
from crate_mm.checkpoints import CheckpointError, open_checkpoint
from crate_mm.checkpoints.publish import publish
from crate_mm.extras.average import average, greedy, save
from crate_mm.registry import MODELS

MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="CRATE", arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=8, patch_size=4),
    head=dict(type="LinearHead", num_classes=3),
)
TOST = copy.deepcopy(MODEL)
TOST["backbone"] = dict(type="ToST", arch="tiny_12", img_size=32, patch_size=16)


def stored(path, seed, model=MODEL, classes=("a", "b", "c"), edit=None, **meta):
    torch.manual_seed(seed)
    weights = MODELS.build(copy.deepcopy(model)).state_dict()
    for value in weights.values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape).abs())
    if edit:
        edit(weights)
    described = {"model": model, "dataset_meta": {"classes": list(classes)}, **meta}
    torch.save({"meta": described, "state_dict": weights}, path)
    return path


@pytest.mark.slow
def test_the_average_is_the_mean_by_hand(tmp_path):
    paths = [stored(tmp_path / f"{n}.pth", n, epoch=n) for n in range(3)]
    mean, notes = average(paths)
    assert notes == []
    for name, value in mean.weights.items():
        parts = [open_checkpoint(path).weights[name] for path in paths]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, sum(part.double() for part in parts).div(3).float(), rtol=0, atol=0)
    save(mean, tmp_path / "mean.pth")
    opened = open_checkpoint(tmp_path / "mean.pth")
    told = ["0.pth (epoch 0)", "1.pth (epoch 1)", "2.pth (epoch 2)"]
    assert opened.meta["averaged_from"] == told
    assert opened.notes == [f"the weights are the average of {', '.join(told)}"]
    model = init_model(None, tmp_path / "mean.pth")
    assert model.class_names == ["a", "b", "c"]
    assert all(torch.equal(value, mean.weights[name]) for name, value in model.state_dict().items())
    publish(opened, tmp_path / "mean.safetensors")
    assert open_checkpoint(tmp_path / "mean.safetensors").meta["averaged_from"] == told


@pytest.mark.slow
def test_batchnorm_and_whole_numbers(tmp_path):
    def count(number):
        return lambda weights: [v.fill_(number) for k, v in weights.items() if k.endswith("num_batches_tracked")]

    paths = [stored(tmp_path / f"{n}.pth", n, TOST, edit=count(10 * n)) for n in (3, 1, 2)]
    mean, _ = average(paths)
    counters = [value for name, value in mean.weights.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(value.dtype == torch.int64 and value == 30 for value in counters)
    (name, *_) = [name for name in mean.weights if name.endswith("running_var")]
    parts = [open_checkpoint(path).weights[name] for path in paths]
    torch.testing.assert_close(mean.weights[name], sum(parts) / 3)


def test_averaged_weights_are_what_is_averaged(tmp_path):
    path = stored(tmp_path / "a.pth", 0)
    contents = torch.load(path, weights_only=True)
    contents["ema_state_dict"] = {name: value * 0 for name, value in contents["state_dict"].items()}
    torch.save(contents, tmp_path / "b.pth")
    mean, notes = average([path, tmp_path / "b.pth"])
    assert torch.equal(mean.weights["head.fc.weight"], contents["state_dict"]["head.fc.weight"])
    assert notes == ["1 of 2 checkpoints already hold weights averaged over training (ema_momentum)"]


def other(**changes):
    model = copy.deepcopy(MODEL)
    for key, value in changes.items():
        *above, last = key.split("__")
        holder = model
        for part in above:
            holder = holder[part]
        holder[last] = value
    return model


def test_what_is_of_training_alone_may_differ(tmp_path):
    recipe = other(label_smoothing=0.1, batch_augments=[dict(type="MixUp")], backbone__drop_path=0.2)
    tested = [dict(type="Resize", size=8)]
    mean, notes = average(
        [stored(tmp_path / "a.pth", 0), stored(tmp_path / "b.pth", 1, recipe, test_transforms=tested)]
    )
    assert mean.model == MODEL
    assert notes == [f"the checkpoints have different test transforms: using those of {tmp_path / 'a.pth'}"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": other(backbone__arch=dict(embed_dim=24, depth=2, num_heads=2))}, "its backbone.arch.num_heads is 2"),
        ({"model": other(head__pool="mean")}, "its head.pool is 'mean', not None"),
        ({"model": other(preprocessor=dict(mean=[0.5] * 3, std=[0.5] * 3))}, "its preprocessor is .*, not None"),
        ({"classes": ("b", "a", "c")}, "has other classes than"),
        ({"edit": lambda weights: weights.pop("head.fc.bias")}, "head.fc.bias is missing"),
        (
            {"edit": lambda w: w.update({"head.fc.bias": torch.zeros(4)})},
            r"head.fc.bias is \(4,\) in the file and \(3,\) in the model",
        ),
    ],
)
def test_other_models_are_refused(tmp_path, changes, sentence):
    paths = [stored(tmp_path / "a.pth", 0), stored(tmp_path / "b.pth", 1, **changes)]
    with pytest.raises(CheckpointError, match=sentence):
        average(paths)
    with pytest.raises(CheckpointError, match=sentence):
        greedy(paths, lambda checkpoint: pytest.fail("it was scored before it was checked"))


def test_whole_numbers_that_differ_have_no_mean(tmp_path):
    def index(number):
        return lambda weights: weights.update(index=torch.tensor([number]))

    with pytest.raises(
        CheckpointError, match="has other values in index than .*; integers and booleans cannot be averaged"
    ):
        average([stored(tmp_path / f"{n}.pth", 0, edit=index(n)) for n in (1, 2)])
    mean, _ = average([stored(tmp_path / f"{n}.pth", n, edit=index(7)) for n in (1, 2)])
    assert mean.weights["index"] == 7


def test_weights_that_do_not_say_their_model_are_refused(tmp_path):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="has no model config"):
        average([tmp_path / "a.pth"])


@pytest.mark.parametrize("greater", [True, False])
def test_the_greedy_average_keeps_what_does_not_harm(tmp_path, greater):
    """Weights of one number: best is 1; the soup is scored by its distance to that."""

    def at(value):
        return lambda weights: [v.fill_(value) for v in weights.values()]

    places = {"0.pth": 0.6, "1.pth": 5.0, "2.pth": 1.3, "3.pth": 1.1}
    paths = [stored(tmp_path / name, 0, edit=at(value)) for name, value in places.items()]
    sign = -1 if greater else 1
    mean, tried, _ = greedy(paths, lambda c: sign * abs(c.weights["head.fc.bias"][0].item() - 1), greater)
    assert [(step.path[-5], step.accepted) for step in tried] == [("3", True), ("2", False), ("0", False), ("1", False)]
    assert mean.weights["head.fc.bias"][0].item() == pytest.approx(1.1)
    assert mean.meta["averaged_from"] == ["3.pth"]
    places["0.pth"] = 0.95
    stored(tmp_path / "0.pth", 0, edit=at(0.95))
    finished = []
    mean, tried, _ = greedy(
        paths, lambda c: sign * abs(c.weights["head.fc.bias"][0].item() - 1), greater, lambda c: finished.append(c) or c
    )
    assert [(step.path[-5], step.accepted) for step in tried] == [("0", True), ("3", True), ("2", False), ("1", False)]
    assert mean.weights["head.fc.bias"][0].item() == pytest.approx(1.025)
    assert [sign * step.soup_score for step in tried] == pytest.approx([0.05, 0.025, 0.35 / 3, 4.05 / 3], rel=1e-4)
    assert len(finished) == 4
