"""Models that files describe: registered parts alone, no larger than their weights, and of bounded sizes."""

import copy
import inspect
import json
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import Registry
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from crate_mm import Predictor, get_model, init_model, registry
from crate_mm.checkpoints import Checkpoint, open_checkpoint
from crate_mm.checkpoints.described import (
    build_from_checkpoint,
    check_transforms,
    limit_model_size,
    validated_model_config,
)
from crate_mm.checkpoints.publish import publish
from crate_mm.checkpoints.validate import FORMAT
from crate_mm.cli.analyze import build_model as build_analyzed
from crate_mm.datasets import build_transforms
from crate_mm.datasets.images import UnreadableImageError
from crate_mm.engine import CheckpointError, Runner, load_config, read_checkpoint
from crate_mm.inference.standalone import build_transferred_model, load_config_and_checkpoint
from crate_mm.inference.transforms import EvalTransform
from crate_mm.models import CRATE, Backbone
from crate_mm.registry import BACKBONES, builds_from_data, registered_only

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
EVIL = "subprocess.Popen"
SMALL = dict(embed_dim=16, depth=1, num_heads=2)
MODEL = {
    "type": "ImageClassifier",
    "backbone": {"type": "CRATE", "arch": SMALL, "img_size": 8, "patch_size": 4},
    "head": {"type": "LinearHead", "num_classes": 10},
    "preprocessor": {"type": "ImagePreprocessor"},
}


def weights_of(model: dict) -> dict[str, torch.Tensor]:
    return registry.MODELS.build(copy.deepcopy(model)).state_dict()


@pytest.mark.parametrize("key", [EVIL, "os.mkdir", "mmengine.model.BaseModel", "evil.Part"])
def test_no_registry_imports_what_data_names(tmp_path, monkeypatch, key):
    """'evil.Part' would import evil.registry, a file of this folder here."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "registry.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, parts in REGISTRIES.items():
        with registered_only():
            with pytest.raises(ValueError, match=rf"unknown .* '{key}'"):
                parts.get(key)
            if name != "RUNNERS":  # which builds from a whole config
                with pytest.raises(ValueError, match=rf"unknown .* '{key}'"):
                    parts.build({"type": key, "args": ["touch", str(tmp_path / "mark")]})
        assert not (tmp_path / "mark").exists(), name


def test_a_config_may_name_what_is_imported():
    assert BACKBONES.get("torch.nn.Identity") is nn.Identity


def places(part: dict, path: tuple = ()) -> list[tuple]:
    """Every argument of a description, at every depth, and every argument that a part of it might have."""
    found = [(*path, "nothing_known")]
    for key, value in part.items():
        if key != "type":
            found.append((*path, key))
        if isinstance(value, dict):
            found += places(value, (*path, key))
    return found


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        ("pth", lambda x: x),
        ("pth", lambda x: {"inner": [{"type": "CRATE", "x": x}]}),
        ("safetensors", lambda x: [x]),
    ],
)
def test_nothing_runs_wherever_a_file_names_it(tmp_path, wrap, kind):
    mark, file, weights = tmp_path / "mark", tmp_path / f"x.{kind}", weights_of(MODEL)
    for place in places(MODEL):
        model = copy.deepcopy(MODEL)
        holder = model
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = wrap({"type": EVIL, "args": ["touch", str(mark)]})
        if kind == "pth":
            torch.save({"meta": {"model": model}, "state_dict": weights}, file)
        else:
            save_file(weights, file, {"format": "pt", "crate_mm": json.dumps({"model": model})})
        named = rf"names the .* '{EVIL}', which is not registered|expected a dict of plain data as its meta.model"
        with pytest.raises(CheckpointError, match=rf"x.{kind} .*({named})"):
            init_model(None, file)
    time.sleep(0.05)
    assert not mark.exists()


def test_a_registered_part_in_an_odd_place_does_not_fit_the_weights():
    model = {**MODEL, "preprocessor": copy.deepcopy(MODEL)}
    with pytest.raises(CheckpointError, match="x.pth (does not fit the model|describes a larger model)"):
        build_from_checkpoint(Checkpoint("x.pth", weights_of(MODEL), model))


HUGE = {
    "classes": {"head": {"type": "LinearHead", "num_classes": 10**8}},
    "depth": {"backbone": {"type": "CRATE", "arch": {**SMALL, "depth": 10**7}}},
    "width": {"backbone": {"type": "CRATE", "arch": {**SMALL, "embed_dim": 2**24}}},
    "image": {"backbone": {"type": "CRATE", "arch": SMALL, "img_size": 2**20, "patch_size": 1}},
    "ViT's depth": {"backbone": {"type": "ViT", "arch": {**SMALL, "depth": 10**7}, "img_size": 32}},
}


@pytest.mark.parametrize("what", HUGE)
def test_a_huge_model_is_refused_before_it_takes_memory_or_time(what):
    weights = weights_of(MODEL)
    start = time.perf_counter()
    refused = r"x.pth (describes a (larger model|model whose .* is more than)|does not fit)"
    with pytest.raises(CheckpointError, match=refused):
        build_from_checkpoint(Checkpoint("x.pth", weights, {**copy.deepcopy(MODEL), **HUGE[what]}))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("name", ["crate_tiny", "vit_tiny"])
def test_a_model_builds_within_the_size_of_its_own_weights(name):
    model = get_model(name, num_classes=7, img_size=32)
    weights = model.state_dict()
    with limit_model_size(weights), torch.device("meta"):
        assert get_model(name, num_classes=7, img_size=32).state_dict().keys() == weights.keys()


ODD_NUMBERS = {
    "eta": {"backbone": {**MODEL["backbone"], "ista_step_size": "x"}},
    "lambda": {"backbone": {**MODEL["backbone"], "ista_lambda": None}},
    "heads": {"backbone": {**MODEL["backbone"], "arch": {**SMALL, "num_heads": -2}}},
    "no layer": {"backbone": {**MODEL["backbone"], "arch": {**SMALL, "depth": 0}}},
    "a large mean": {"preprocessor": {"type": "ImagePreprocessor", "mean": [10**40] * 3}},
    "a std of NaN": {"preprocessor": {"type": "ImagePreprocessor", "std": [float("nan")] * 3}},
    "nested": {"preprocessor": {"type": "ImagePreprocessor", "mean": [[1, 2]] * 3}},
    "one channel": {"preprocessor": {"type": "ImagePreprocessor", "mean": [0.5], "std": [0.5]}},
}


@pytest.mark.parametrize("what", ODD_NUMBERS)
def test_numbers_that_would_fail_at_a_prediction_fail_at_the_load(what):
    refused = r"x.pth (describes (a model (that does not build|whose .* is more)|its model with)|does not fit)"
    with pytest.raises(CheckpointError, match=refused):
        build_from_checkpoint(Checkpoint("x.pth", weights_of(MODEL), {**MODEL, **ODD_NUMBERS[what]}))


class NeedsNumbers(Backbone):
    """A part that cannot be built without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = int(torch.linspace(1, 16, 2)[1].item())


def test_a_part_that_needs_memory_to_be_built_is_told(monkeypatch):
    monkeypatch.setitem(BACKBONES.module_dict, "NeedsNumbers", NeedsNumbers)
    with pytest.raises(CheckpointError, match="x.pth describes a model that does not build .*: give a config"):
        build_from_checkpoint(Checkpoint("x.pth", {}, {**MODEL, "backbone": {"type": "NeedsNumbers"}}))


@pytest.mark.parametrize("levels", [900, 100_000])
def test_a_deep_description_is_told(tmp_path, levels):
    text = '{"model": {"type": "ImageClassifier", "backbone": ' + '{"a":' * levels + "1" + "}" * levels + "}}"
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"format": "pt", "crate_mm": text})
    with pytest.raises(CheckpointError, match="x.safetensors is (damaged or )?not a checkpoint"):
        read_checkpoint(tmp_path / "x.safetensors")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["CRATE", EVIL, "x.y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "arch", "depth", "_scope_", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(sorted(inspect.signature(BACKBONES.get("CRATE")).parameters)), value=VALUES)
@pytest.mark.slow
def test_arguments_of_anything_end_in_a_model_that_fits_or_a_sentence(key, value):
    model = copy.deepcopy(MODEL)
    model["backbone"][key] = value
    weights = weights_of(MODEL)
    try:
        built = build_from_checkpoint(Checkpoint("x.pth", weights, model))
    except CheckpointError as error:
        assert str(error).startswith("x.pth ")
    else:
        assert built.state_dict().keys() == weights.keys()


def test_a_files_model_is_built_of_registered_parts_behind_a_config_too(tmp_path, monkeypatch):
    """A config that names no model takes the file's; what its parts build in turn is data as well."""
    asked = []

    class Nested(CRATE):
        def __init__(self, **given):
            asked.append(builds_from_data())
            super().__init__(**given)

    monkeypatch.setitem(BACKBONES.module_dict, "Nested", Nested)
    model = {**MODEL, "backbone": {**MODEL["backbone"], "type": "Nested"}}
    torch.save({"meta": {"model": model}, "state_dict": weights_of(model)}, tmp_path / "c.pth")
    cfg, opened = load_config_and_checkpoint("transfer/cifar10", tmp_path / "c.pth")
    del asked[:]
    build_transferred_model(cfg, opened)
    build_analyzed(cfg, opened, seed=0, full_model=True)
    init_model("transfer/cifar10", tmp_path / "c.pth")
    assert asked == [True] * 5  # init_model compares with the weights, and reads the size of the images, first
    (tmp_path / "own.py").write_text(f"model = {model!r}")
    init_model(tmp_path / "own.py", tmp_path / "c.pth")
    assert asked[5:] == [False]  # a config is code
    small = {"test_dataloader.dataset.source": {"type": "FakeData", "size": 4, "image_size": (3, 8, 8)}}
    small |= {"test_dataloader.dataset.transforms": [], "test_dataloader.num_workers": 0}
    for config, expected in (("transfer/cifar10", True), (tmp_path / "own.py", False)):
        cfg, opened = load_config_and_checkpoint(config, tmp_path / "c.pth", full_model=True)
        base = load_config("transfer/cifar10", small)
        cfg.test_dataloader, cfg.test_cfg, cfg.test_evaluator = base.test_dataloader, {}, base.test_evaluator
        cfg.update(train_dataloader=None, train_cfg=None, optim_wrapper=None, param_scheduler=None)
        cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, work_dir=str(tmp_path / "run"))
        del asked[:]
        Runner.for_testing(cfg, opened)
        assert asked == [expected]


WORDS = {
    "scope": {"_scope_": "evil"},
    "code as a key": {"x': print('CODE'), 'y": 1},
    "a key that is no name": {"a b": 1},
    "filled in": {"pool": "{{fileDirname}}"},
    "infinite": {"size": float("inf")},
}


@pytest.mark.parametrize("what", WORDS)
def test_a_description_holds_nothing_that_a_config_acts_on(what):
    """The model goes into the config that a run leaves in its work directory, whose text is code."""
    described = {**copy.deepcopy(MODEL), "head": {**MODEL["head"], "norm": WORDS[what]}}
    with pytest.raises(CheckpointError, match="which is not an argument name|which is not a plain value"):
        validated_model_config(Checkpoint("x.pth", weights_of(MODEL), described))
    with pytest.raises(CheckpointError, match="x.pth was tested with transforms that have"):
        check_transforms([{"type": "Resize", "size": 32, **WORDS[what]}], "x.pth")


def test_transforms_of_a_file_are_bounded():
    with pytest.raises(CheckpointError, match="was tested with 33 transforms"):
        check_transforms([{"type": "Resize", "size": 32}] * 33, "x.pth")
    grow = build_transforms([{"type": "Pad", "padding": 8000}] * 3)
    with pytest.raises(UnreadableImageError, match="pixels"):
        grow(Image.new("L", (8, 8)))
    with pytest.raises(UnreadableImageError, match="pixels"):
        build_transforms([{"type": "RandomCrop", "size": 8, "padding": 8000}])(Image.new("L", (8, 8)))
    assert build_transforms([{"type": "Pad", "padding": [1, 2, 3, 4]}])(Image.new("L", (8, 8))).size == (12, 14)
    assert build_transforms([{"type": "Pad", "padding": [1, 2]}])(Image.new("L", (8, 8))).size == (10, 12)


@pytest.mark.parametrize(("version", "words"), [({}, "no format version"), ({"format": 7}, "format version 7")])
def test_weights_of_other_names_are_refused_with_their_format_version(tmp_path, version, words):
    """As of an early version of the package, whose layers were named otherwise."""
    weights = {name.replace("norm_compress", "attn_norm"): value for name, value in weights_of(MODEL).items()}
    torch.save({"meta": {"model": MODEL, **version}, "state_dict": weights}, tmp_path / "old.pth")
    sentence = rf"old.pth does not fit the model: .*; it has {words}, this crate_mm has 1: use the version of crate_mm"
    with pytest.raises(CheckpointError, match=sentence):
        init_model(None, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=sentence):
        publish(open_checkpoint(tmp_path / "old.pth"), tmp_path / "old.safetensors")
    assert not (tmp_path / "old.safetensors").exists()


def test_a_version_is_not_named_where_names_fit_or_it_is_the_same(tmp_path):
    weights = weights_of(MODEL)
    for version, change in (({}, {"head.fc.weight": torch.zeros(3, 16)}), ({"format": 1}, {"other": torch.zeros(1)})):
        torch.save({"meta": {"model": MODEL, **version}, "state_dict": weights | change}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="does not fit the model: ") as error:
            init_model(None, tmp_path / "x.pth")
        assert "format version" not in str(error.value)


def test_what_is_published_says_its_format_where_its_names_are_known(tmp_path):
    torch.save({"meta": {"model": MODEL}, "state_dict": weights_of(MODEL)}, tmp_path / "x.pth")
    publish(open_checkpoint(tmp_path / "x.pth"), tmp_path / "x.safetensors")
    assert open_checkpoint(tmp_path / "x.safetensors").meta["format"] == FORMAT
    unknown = {**MODEL, "backbone": {"type": "OfAFileThatIsNotImported"}}
    torch.save({"meta": {"model": unknown}, "state_dict": weights_of(MODEL)}, tmp_path / "x.pth")
    publish(open_checkpoint(tmp_path / "x.pth"), tmp_path / "x.safetensors")
    assert "format" not in open_checkpoint(tmp_path / "x.safetensors").meta


# Sizes that a file names and no weight bounds ---------------------------------------------------------------------

TOST = {
    "type": "ImageClassifier",
    "backbone": {"type": "ToST", "arch": {"embed_dim": 16, "depth": 1, "num_heads": 2}, "img_size": 32},
    "head": {"type": "LinearHead", "num_classes": 2},
}


def described(path, img_size, transforms):
    """A checkpoint that says images of a size, on which none of its weights depends."""
    model = copy.deepcopy(TOST)
    state = weights_of(model)
    model["backbone"]["img_size"] = img_size
    torch.save({"meta": {"model": model, "test_transforms": transforms}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("img_size", [5696, [1024, 8192]])
def test_a_described_model_of_huge_images_is_refused(tmp_path, img_size):
    with pytest.raises(CheckpointError, match=r"describes a model of images of \d+ x \d+ pixels, more than 4,194,304"):
        init_model(None, described(tmp_path / "x.pth", img_size, []))


DEPTHS = {
    "a depth": {"type": "CRATE", "arch": {"embed_dim": 16, "depth": 10**9, "num_heads": 2}, "drop_path": 0.1},
    "a list of depths": {"type": "CRATE", "depths": [2**20, 1]},
}


@pytest.mark.parametrize("what", DEPTHS)
def test_a_described_depth_is_bounded_before_rates_are_listed_for_it(tmp_path, what):
    path = described(tmp_path / "x.pth", 32, [])
    contents = torch.load(path)
    contents["meta"]["model"]["backbone"] = DEPTHS[what]
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match=r"model whose backbone.*depths? is more than 1,048,576: give a config"):
        init_model(None, path)


def test_large_images_go_through_in_smaller_batches(tmp_path):
    images = [Image.new("RGB", (8, 8))] * 17
    for size, lengths in ((2048, [16, 1]), (32, [17])):
        model = init_model(None, described(tmp_path / f"{size}.pth", size, [{"type": "Resize", "size": [32, 32]}]))
        assert [len(batch) for batch in EvalTransform(model).batches(images, 64)] == lengths


def test_transforms_make_no_larger_images_than_the_model_takes(tmp_path):
    model = init_model(None, described(tmp_path / "x.pth", 32, [{"type": "Resize", "size": [1024, 1040]}]))
    with pytest.raises(ValueError, match="make images of 1024 x 1040 pixels, more than 1,048,576: give transforms"):
        Predictor(model)([Image.new("RGB", (8, 8))])
    larger = [{"type": "Resize", "size": [64, 64]}]  # a user's own are not bounded by the file's
    assert len(Predictor(model, transforms=larger)([Image.new("RGB", (8, 8))])) == 1


BLUR = {"type": "GaussianBlur", "kernel_size": 4095, "sigma": 100.0}
SLOW = {
    "large kernels on large images": [{"type": "Resize", "size": [4096, 4096]}, BLUR],
    "a kernel within": [{"type": "RandomApply", "transforms": [BLUR]}],
    "many": [{"type": "Resize", "size": 4096}, *[{"type": "GaussianBlur", "kernel_size": [9, 9]}] * 20],
    "many large resizes": [{"type": "Resize", "size": 8192}] * 16,
    "resizes within one another": [{"type": "Compose", "transforms": [{"type": "Resize", "size": 1024}] * 1000}],
    "operations of one": [{"type": "RandAugment", "num_ops": 8192}],
    "a kernel by sigma": [{"type": "ElasticTransform", "sigma": 500.0}],
}


@pytest.mark.parametrize("what", SLOW)
def test_transforms_that_take_long_together_are_refused(what):
    with pytest.raises(CheckpointError, match="x.pth was tested with transforms that take too long for an image"):
        check_transforms(SLOW[what], "x.pth")


def test_usual_transforms_are_taken():
    blur = {"type": "GaussianBlur", "kernel_size": 23, "sigma": [0.1, 2.0]}
    check_transforms([{"type": "Resize", "size": 256}, blur, {"type": "CenterCrop", "size": 224}], "x.pth")
    check_transforms([{"type": "Resize", "size": 1024}] * 32, "x.pth")
    check_transforms([{"type": "ElasticTransform"}], "x.pth")
