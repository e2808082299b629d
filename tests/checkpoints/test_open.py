"""One opener: it takes off what files are wrapped in, says what it did, and guesses nothing."""

import pytest
import torch

from crate_mm.checkpoints import CheckpointError, as_checkpoint, open_checkpoint
from crate_mm.checkpoints.fit import load_strict, transfer_backbone
from crate_mm.models import ImageClassifier

MICRO = dict(embed_dim=24, depth=2, num_heads=3)


def build(classes=5):
    return ImageClassifier(
        backbone=dict(type="CRATE", arch=MICRO, img_size=16, patch_size=4),
        head=dict(type="LinearHead", num_classes=classes),
    )


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build().state_dict()


def named(weights, change):
    return {change(name): value for name, value in weights.items()}


WRAPPINGS = {
    "bare": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {"state": {}}, "epoch": 3},
    "net": lambda w: {"net": w, "acc": 0.5},
    "model_state_dict": lambda w: {"model_state_dict": w},
    "nested": lambda w: {"state_dict": {"model": w}},
    "module.": lambda w: {"state_dict": named(w, lambda n: f"module.{n}")},
    "_orig_mod.": lambda w: named(w, lambda n: f"_orig_mod.{n}"),
    "both": lambda w: {"model": named(w, lambda n: f"module._orig_mod.{n}")},
    "both, turned": lambda w: {"model": named(w, lambda n: f"_orig_mod.module.{n}")},
    "compiled blocks": lambda w: named(w, lambda n: n.replace("blocks.0.", "blocks.0._orig_mod.")),
    "checkpointed blocks": lambda w: named(w, lambda n: n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.")),
    "fsdp": lambda w: named(w, lambda n: f"_fsdp_wrapped_module.{n}"),
    "lightning": lambda w: {"state_dict": named(w, lambda n: f"model.{n}"), "pytorch-lightning_version": "2"},
    "averaged alone": lambda w: {"state_dict_ema": w},
    "averaged, EMA": lambda w: {"model_ema": named(w, lambda n: f"module.{n}")},
    "plain and averaged": lambda w: {"state_dict": w, "state_dict_ema": {n: 0 * v for n, v in w.items()}},
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(3), **named(w, lambda n: f"module.{n}")},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_what_files_are_wrapped_in_is_taken_off(weights, name, tmp_path):
    torch.save(WRAPPINGS[name](dict(weights)), tmp_path / "x.pth")
    opened, model = open_checkpoint(tmp_path / "x.pth"), build()
    load_strict(model, opened)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert bool(opened.notes) == (name not in ("bare", "state_dict")), "what was done is said"


def test_averaged_weights_are_told_apart(weights):
    opened = as_checkpoint({"state_dict": dict(weights), "state_dict_ema": dict(weights)})
    assert opened.notes == ["ignored averaged weights under 'state_dict_ema'"]
    assert as_checkpoint({"ema": dict(weights)}).notes[0] == "the weights under 'ema' are averaged weights"
    averaged = as_checkpoint({"n_averaged": torch.tensor(3), **named(weights, lambda n: f"module.{n}")})
    assert averaged.notes[-1] == "the weights are the average of 3 models"


def test_two_sets_of_weights_are_not_chosen_from(weights):
    with pytest.raises(CheckpointError, match="x.pth has weights under model and net: save only"):
        as_checkpoint({"model": dict(weights), "net": dict(weights)}, "x.pth")


def test_names_with_and_without_a_wrapper(weights):
    twice = {**weights, **named(weights, lambda n: f"module.{n}")}
    with pytest.raises(CheckpointError, match="has some parameters twice, with and without a wrapper"):
        as_checkpoint(twice)


def test_a_backbone_by_itself_is_transferred_and_not_taken_for_a_model(weights):
    model = build(classes=2)
    bare = {name.removeprefix("backbone."): v for name, v in weights.items() if name.startswith("backbone.")}
    opened = as_checkpoint(bare, "x.pth")
    assert transfer_backbone(model, opened).new.keys() == {f"head.{name}" for name in model.head.state_dict()}
    assert torch.equal(model.state_dict()["backbone.embedding.pos_embed"], weights["backbone.embedding.pos_embed"])
    assert "the file holds a backbone without a task" in opened.notes
    with pytest.raises(CheckpointError, match=r"x.pth does not fit the model: head.norm.weight is missing"):
        load_strict(build(), as_checkpoint(bare, "x.pth"))


def test_a_file_of_ours_is_taken_as_it_is(weights):
    """A model of one's own may well have a part that is called model or module."""
    mine = named(weights, lambda n: f"module.{n}")
    opened = as_checkpoint({"meta": {"model": {"type": "Mine"}}, "state_dict": mine})
    assert opened.weights.keys() == mine.keys()
    assert opened.notes == []


def test_a_dict_without_tensors_is_no_container(weights):
    opened = as_checkpoint({"model": dict(weights), "params": {"lr": 1}, "net": {}})
    assert opened.weights.keys() == weights.keys()
    both = as_checkpoint({"state_dict": dict(weights), "model": {"other": torch.zeros(1)}})
    assert both.notes == ["ignored weights under 'model'"]
