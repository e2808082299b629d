"""Files from anywhere: none runs code, none ends in anything but a sentence."""

import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crate_mm.api import init_model
from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.checkpoints.publish import publish
from crate_mm.checkpoints.readers.safetensors import digest, read_safetensors
from crate_mm.config.kinds import parse_value
from crate_mm.datasets.packed import INDEX, PackedImages, write_shards
from crate_mm.engine import CheckpointError, Runner, load_config, read_checkpoint, resolve_config
from crate_mm.evaluation.real import read_real_labels
from crate_mm.registry import DATASETS
from tests import dataset_formats

BOUNDED = dict(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Mark:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(params=["zip", "legacy", "safetensors"])
def evil(request, tmp_path) -> Path:
    """A work directory's newest checkpoint that would make ``mark`` beside it."""
    contents = {"state_dict": {}, "meta": {"epoch": 1, "iter": 10, "model": {}}, "evil": Mark(tmp_path / "mark")}
    path = tmp_path / ("evil.safetensors" if request.param == "safetensors" else "epoch_1.pth")
    if request.param == "zip":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=2))
    return path


ENTRIES = {
    "train --load-from": ["train", "debug", "--load-from", "{file}"],
    "train --resume": ["train", "debug", "--resume", "{file}"],
    "train, newest": ["train", "debug", "--resume"],
    "test": ["test", "debug", "{file}"],
    "knn": ["knn", "debug", "{file}"],
    "analyze": ["analyze", "layers", "debug", "{file}", "--num-images", "4"],
    "convert": ["convert_official", "{file}", "{folder}/out.pth"],
    "publish": ["publish", "{file}", "{folder}/out.safetensors"],
}


def run_on(entry: str, file: Path, run_tool):
    """Run an entry's tool on a file, in the file's folder."""
    tool, *args = (part.format(file=file, folder=file.parent) for part in ENTRIES[entry])
    done = run_tool(tool, *args, *(["--work-dir", file.parent] if tool in ("train", "test", "knn") else []))
    assert "Traceback" not in done.output
    return done


@pytest.mark.parametrize("evil", ["zip"], indirect=True)  # all three below
@pytest.mark.parametrize("entry", ENTRIES)
def test_no_tool_runs_what_a_file_holds(tmp_path, evil, run_tool, entry):
    done = run_on(entry, evil, run_tool)
    assert done.code == 2, done.output
    assert done.last_line.startswith("error: "), done.output
    assert evil.name in done.last_line
    assert not (tmp_path / "mark").exists()


def test_labels_results_and_indexes_run_nothing(tmp_path, run_tool, debug_checkpoint):
    """A pickle in the place of JSON, of an index's array and of CIFAR's batches."""
    data = pickle.dumps(Mark(tmp_path / "mark"), protocol=2)
    (tmp_path / "result.json").write_bytes(data)
    (tmp_path / "train").mkdir()
    array = np.empty(1, object)
    array[0] = Mark(tmp_path / "mark")
    np.savez(tmp_path / "train" / INDEX, label=array, about=array)
    dataset_formats.WRITERS["CIFAR10"](tmp_path, lambda *args: None)
    for batch in (tmp_path / "cifar-10-batches-py").iterdir():
        batch.write_bytes(data)
    ways = [lambda: PackedImages(tmp_path), lambda: DATASETS.get("CIFAR10")(str(tmp_path), train=True)]
    for way in ways:
        with pytest.raises(ValueError, match="damaged|incomplete"):
            way()
    args = ["debug", debug_checkpoint, "--real", tmp_path / "result.json", "--work-dir", tmp_path / "w"]
    for done in (run_tool("results_table", tmp_path), run_tool("test", *args)):
        assert (done.code, "Traceback" in done.output) == (2, False), done.output
        assert "result.json" in done.last_line
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("config", ["debug", None])
def test_the_api_runs_nothing_that_a_file_holds(tmp_path, evil, config):
    with pytest.raises(CheckpointError, match=evil.name):
        init_model(config, evil)
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_no_tool_builds_what_a_file_describes_by_running_it(tmp_path, debug_checkpoint, run_tool):
    """A whole checkpoint that says, deep in its model, that it is built by a command."""
    checkpoint = read_checkpoint(debug_checkpoint)
    evil = {"type": "subprocess.Popen", "args": ["touch", str(tmp_path / "mark")]}
    checkpoint["meta"]["model"]["preprocessor"] = {"type": "ImageClassifier", "backbone": evil, "head": evil}
    torch.save(checkpoint, tmp_path / "epoch_1.pth")
    done = run_on("analyze", tmp_path / "epoch_1.pth", run_tool)
    assert done.code in (0, 2), done.output
    assert not (tmp_path / "mark").exists()


def test_the_mark_would_be_left(tmp_path):
    pickle.loads(pickle.dumps(Mark(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.slow
def test_what_is_published_is_the_model_and_no_more(tmp_path, debug_checkpoint, run_tool):
    file = tmp_path / "debug.safetensors"
    best = next(debug_checkpoint.parent.glob("best_*"))
    done = run_tool("publish", best, file)
    assert done.code == 0, done.output
    weights = read_checkpoint(best)["state_dict"]
    published = read_checkpoint(file)
    assert published["state_dict"].keys() == weights.keys()
    assert all(torch.equal(published["state_dict"][key], value) for key, value in weights.items())
    assert digest(weights) in done.output
    assert "top1 " in done.last_line
    model, same = init_model(None, file), init_model("debug", best)
    assert model.class_names == list("0123456789")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), same(images))
    tested = [run_tool("test", "debug", path, "--work-dir", tmp_path / "test") for path in (best, file)]
    assert tested[0].last_line == tested[1].last_line
    again = run_tool("publish", best, file)
    assert (again.code, again.last_line) == (2, f"error: {file} exists: --force overwrites it")


def test_published_weights_that_have_changed_are_found(tmp_path, debug_checkpoint):
    publish(as_checkpoint(read_checkpoint(debug_checkpoint)), tmp_path / "x.safetensors")
    data = bytearray((tmp_path / "x.safetensors").read_bytes())
    data[-1000] ^= 1
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="its weights do not match their hash"):
        read_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("part", ["backbone", "head", "preprocessor", None])
@pytest.mark.parametrize("kind", ["os.mkdir", "torch.nn.Linear", "Sequential", 7, ["a"]])
def test_a_checkpoint_can_name_registered_parts_only(tmp_path, debug_checkpoint, part, kind):
    checkpoint = read_checkpoint(debug_checkpoint)
    model = checkpoint["meta"]["model"]
    (model[part] if part else model)["type"] = kind
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth names the \w+ .*, which is not registered"):
        init_model(None, tmp_path / "x.pth")


@pytest.mark.parametrize("key", ["_scope_", "_delete_"])
@pytest.mark.parametrize("place", ["backbone", "head", None])
def test_a_checkpoint_gives_mmengine_no_instructions(tmp_path, monkeypatch, debug_checkpoint, key, place):
    """``_scope_='x'`` would import x.registry, a file of this folder here."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "registry.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = read_checkpoint(debug_checkpoint)
    model = checkpoint["meta"]["model"]
    (model[place] if place else model)[key] = "evil"
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth describes its model with '{key}'"):
        init_model(None, tmp_path / "x.pth")
    assert not (tmp_path / "mark").exists()


ODD_FORMS = {
    "keys": lambda c: c.update({7: 1}),
    "state_dict": lambda c: c["state_dict"].update({7: torch.zeros(1)}),
    "meta tensor": lambda c: c["state_dict"].update(x=torch.zeros(3, device="meta")),
    "expanded": lambda c: c["state_dict"].update(x=torch.zeros(1).expand(10**12)),
    "sparse": lambda c: c["state_dict"].update(x=torch.eye(3).to_sparse()),
}


@pytest.mark.parametrize("form", ODD_FORMS)
def test_a_checkpoint_of_another_form_is_told(tmp_path, debug_checkpoint, form):
    checkpoint = read_checkpoint(debug_checkpoint)
    ODD_FORMS[form](checkpoint)
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth is (not a checkpoint: |damaged or not a checkpoint: )"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_part_that_is_no_config_does_not_build(tmp_path, debug_checkpoint):
    """A task of one's own may have it so; a classifier has not."""
    checkpoint = read_checkpoint(debug_checkpoint)
    checkpoint["meta"]["model"].update(backbone="CRATE")
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth describes a model that does not build"):
        init_model(None, tmp_path / "x.pth")


@pytest.mark.parametrize("sizes", [dict(patch_size=0), dict(img_size="large"), dict(img_size=[8, 8, 8])])
def test_sizes_that_are_none_are_not_believed(debug_checkpoint, sizes):
    checkpoint = read_checkpoint(debug_checkpoint)
    checkpoint["meta"]["model"]["backbone"].update(sizes)
    model = init_model("debug")
    assert not transfer_backbone(model, as_checkpoint(checkpoint, "x.pth")).resized


# What a file may hold by mistake or by malice, as deep as such things are.
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
USERS_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError)  # what the tools end in one sentence for


def result_or_sentence(function, *args):
    """What the function returns, or the sentence that it fails with; the other is None."""
    try:
        return function(*args), None
    except USERS_ERRORS as error:
        return None, str(error)


@settings(**BOUNDED)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_files_of_anything_end_in_a_sentence(tmp_path, data, suffix):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"x{suffix}"):
        read_checkpoint(file)


@settings(**{**BOUNDED, "max_examples": 8})
@given(key=st.sampled_from(["meta", "state_dict", "message_hub", "optimizer", "param_schedulers"]), value=DATA)
@pytest.mark.slow
def test_a_resume_from_anything_ends_in_a_sentence(tmp_path, debug_checkpoint, key, value):
    checkpoint = {**read_checkpoint(debug_checkpoint), key: value}
    torch.save(checkpoint, tmp_path / "epoch_1.pth")
    cfg = load_config("debug")
    cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path), True, str(tmp_path / "epoch_1.pth")
    cfg.visualizer, cfg.log_level = None, "CRITICAL"
    runner = Runner.from_cfg(cfg)
    runner.build_for_training()
    _, sentence = result_or_sentence(runner.load_or_resume)
    assert sentence is None or "epoch_1.pth" in sentence


@settings(**BOUNDED)
@given(data=DATA | st.lists(st.lists(st.integers(-5, 5) | st.booleans()), max_size=3))
def test_labels_of_anything_end_in_a_sentence(tmp_path, data):
    file = tmp_path / "real.json"
    file.write_text(json.dumps(data))
    labels, sentence = result_or_sentence(read_real_labels, str(file))
    if labels is None:
        assert "real.json" in sentence
    else:
        assert all(isinstance(label, int) for row in labels for label in row)


def datasets_labels(root: Path, name: str) -> tuple[Path, type]:
    """Write a tiny dataset; return the file of its labels and the class that reads it."""
    if name == "PackedImages":
        folder = root / "train"
        folder.mkdir()
        write_shards(folder, [("a/1.jpg", b"1", 0), ("b/2.jpg", b"22", 1)], ["a", "b"])
        return folder / INDEX, PackedImages
    dataset_formats.WRITERS[name](root, lambda *args: None)
    files = {"FashionMNIST": "train-labels-idx1-ubyte", "OxfordIIITPet": "trainval.txt", "Flowers102": "setid.mat"}
    return next(root.rglob(files[name])), DATASETS.get(name)


@pytest.mark.parametrize("name", ["FashionMNIST", "OxfordIIITPet", "Flowers102", "PackedImages"])
def test_labels_of_datasets_that_are_damaged_end_in_a_sentence(tmp_path, monkeypatch, name):
    file, dataset = datasets_labels(tmp_path, name)
    if name == "Flowers102":  # whose checksums would find it first
        monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
    whole = file.read_bytes()

    @settings(**BOUNDED)
    @given(place=st.integers(0), length=st.integers(1, 8), byte=st.integers(1, 255), cut=st.booleans())
    def damage(place, length, byte, cut):
        at = place % len(whole)
        changed = bytes(b ^ byte for b in whole[at : at + length])
        file.write_bytes(whole[:at] + (b"" if cut else changed + whole[at + length :]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of odd headers
            read, sentence = result_or_sentence(dataset, str(tmp_path))
        if read is None:
            assert str(tmp_path) in sentence
            assert "damaged" in sentence or "incomplete" in sentence or "must have" in sentence
        else:
            labels = np.asarray(
                read.labels if name == "PackedImages" else getattr(read, "targets", read.__dict__.get("_labels"))
            )
            assert len(labels) == len(read)
            assert labels.min(initial=0) >= 0
            assert labels.max(initial=0) < {"FashionMNIST": 10, "PackedImages": 2}.get(name, 102)

    damage()


KEYS = ["model", "train_cfg.max_epochs", "optim_wrapper.optimizer.lr", "global_batch_size", "data_root", "resume"]
KEYS += ["train_dataloader.num_workers", "param_scheduler", "param_scheduler.warmup", "ema_momentum", "custom_hooks"]
KEYS += ["model.backbone.arch", "model.head.num_classes", "default_hooks.checkpoint.interval", "x.y", "model.backbone"]
PARTS = st.sampled_from([*"[](){}=:,.'\" ", "dict", "0", "-1", "1e9", "None", "True", "lambda", "x", "type", "\\", "é"])


@settings(**{**BOUNDED, "max_examples": 50})
@given(
    key=st.sampled_from(KEYS) | st.text(st.sampled_from("abc._[]0"), min_size=1, max_size=8),
    text=st.lists(PARTS, max_size=8).map("".join),
)
@pytest.mark.slow
def test_overrides_of_anything_end_in_a_sentence(key, text):
    cfg, sentence = result_or_sentence(lambda: resolve_config(load_config("debug", {key: parse_value(text)})))
    assert cfg or sentence
