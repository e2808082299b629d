"""Runs of a segmentation: the same steps on any split of the batch, resume, and every tool on its checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import init_model
from crate_mm.config import load_config
from crate_mm.datasets import Scenes
from crate_mm.datasets.masks import palette
from crate_mm.engine import Runner, read_checkpoint
from crate_mm.inference.masks import MaskPredictor
from tests.training import assert_same_states, result_of, train_on_processes

pytestmark = pytest.mark.slow
CONFIG = """
_base_ = ["segmentation_mini_scenes.py"]
data_root = None
model = dict(
    backbone=dict(arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=16, patch_size=4), window=16, stride=8
)
crop = dict(type="RandomCrop", size=16, padding=2)
train_dataloader = dict(dataset=dict(source=dict(length=24, size=16), transforms=[crop]))
val_dataloader = dict(dataset=dict(source=dict(length=7, size=24)), batch_size=3)
global_batch_size = 8
train_cfg = dict(max_epochs=2)
optim_wrapper = dict(optimizer=dict(lr=0.003))
default_hooks = dict(logger=dict(interval=1))
"""


def config(folder, **options):
    file = folder / "scenes_config.py"
    base = load_config("segmentation_mini_scenes").filename
    file.write_text(CONFIG.replace("segmentation_mini_scenes.py", base))
    return load_config(file, {"work_dir": str(folder), **{k.replace("__", "."): v for k, v in options.items()}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training: two epochs of three steps."""
    folder = tmp_path_factory.mktemp("segmentation")
    Runner.from_cfg(config(folder)).train()
    return folder


def test_a_run_is_judged_by_its_mean_intersection_over_union(run):
    result = result_of(run)
    assert result["headline"] == {"metric": "miou", "rule": "greater"}
    assert {"miou", "mean_class", "pixel_acc"} <= result["last"].keys()
    assert (run / f"best_eval_miou_epoch_{result['best']['epoch']}.pth").is_file()
    assert (result["dataset"], result["steps"], result["flops"] > 0) == ("Scenes", 6, True)
    checkpoint = read_checkpoint(run / "epoch_2.pth")
    assert checkpoint["meta"]["dataset_meta"]["classes"] == [*"0123456789", "ground"]


def test_a_resumed_run_is_identical(run, tmp_path):
    cfg = config(tmp_path)
    cfg.resume, cfg.load_from = True, str(run / "epoch_1.pth")
    Runner.from_cfg(cfg).train()
    assert_same_states(run / "epoch_2.pth", tmp_path / "epoch_2.pth")


def take_steps(folder, launcher="none", **options):
    torch.set_default_dtype(torch.float64)
    cfg = config(folder, **options)
    cfg.optim_wrapper.optimizer, cfg.launcher = dict(type="SGD", lr=0.5), launcher
    # Most pixels of a half of the masks are ignored, so that processes hold unequal numbers of labels.
    cfg.train_dataloader.dataset.transforms = [
        dict(type="RandomApply", p=0.5, transforms=[dict(type="RandomRotation", degrees=180, expand=False)]),
        dict(type="RandomCrop", size=16, padding=12),
    ]
    Runner.from_cfg(cfg).train()


def test_processes_and_micro_batches_take_the_same_steps(tmp_path):
    results, metrics = {}, {}
    for name, processes, options in (("one", 1, {}), ("split", 1, {"max_batch_per_device": 3}), ("three", 3, {})):
        (tmp_path / name).mkdir()
        results[name] = dict(train_on_processes(processes, tmp_path / name, take_steps, **options)["state_dict"])
        metrics[name] = result_of(tmp_path / name)["last"]
    for name in ("split", "three"):
        torch.testing.assert_close(results[name], results["one"], rtol=1e-10, atol=1e-12)
        assert metrics[name] == metrics["one"], "seven images on three processes, exactly"


SQUARE = ("--cfg-options", *(f"{split}_dataloader.dataset.source.size=16" for split in ("val", "test")))


# Tools ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = Scenes(split="val", length=3, size=30)
    for i, size in enumerate(((30, 30), (21, 17), (16, 40))):
        scenes[i][0].resize(size).convert("RGB").save(folder / f"p{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_predict_writes_masks_with_a_palette(run, photos, run_tool, tmp_path):
    published = tmp_path / "published.safetensors"
    assert run_tool("publish", run / "epoch_2.pth", published).code == 0
    for checkpoint in (run / "epoch_2.pth", published):
        out = tmp_path / f"masks_{checkpoint.suffix[1:]}"
        done = run_tool("predict", checkpoint, photos, "--out", out)
        assert (done.code, "segmented 3 of 4 images; 1 cannot be read" in done.last_line) == (0, True), done.output
    summary = json.loads((out / "masks.json").read_text())
    assert [entry["name"] for entry in summary["classes"]] == [*"0123456789", "ground"]
    assert [entry["color"] for entry in summary["classes"]] == palette(11).tolist()
    predictor = MaskPredictor(init_model(None, run / "epoch_2.pth"))
    for entry in summary["images"]:
        if "reason" in entry:
            assert entry["image"].endswith("broken.png")
            assert "cannot identify" in entry["reason"]
            continue
        mask = Image.open(out / entry["mask"])
        labels = np.asarray(mask)
        assert (mask.mode, mask.size) == ("P", Image.open(entry["image"]).size)
        assert np.array_equal(labels, predictor(entry["image"]))
        assert mask.getpalette()[:33] == palette(11).flatten().tolist()
        shares = {summary["classes"][label]["name"]: (labels == label).mean() for label in np.unique(labels)}
        assert entry["classes"] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--out", "masks.csv"), "the model is a segmentation: --out names a folder for its masks, got masks.csv"),
        (("photos2/p0.png", "--out", "masks"), "several images are called p0: their masks would have the same name"),
    ],
)
def test_predict_refuses(run, photos, run_tool, tmp_path, args, sentence):
    (tmp_path / "photos2").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "photos2" / "p0.png")
    done = run_tool("predict", run / "epoch_2.pth", photos, *args, cwd=tmp_path)
    assert (done.code, sentence in done.last_line) == (2, True), done.output


def test_predict_prints_shares(run, photos, run_tool):
    done = run_tool("predict", run / "epoch_2.pth", photos / "p0.png", "--top", 2)
    assert done.code == 0
    assert "p0.png: " in done.output
    assert " %" in done.output


@pytest.mark.parametrize(
    ("tool", "args", "output"),
    [
        ("test", ("CONFIG", "CHECKPOINT", "--work-dir", "WORK"), "miou"),
        ("bench", ("CONFIG", "--batch", 4, "--seconds", 1), "images/s"),
        ("doctor", ("CONFIG",), "11 classes in the data, 11 in the head"),
        ("browse", ("CONFIG", "--split", "val", "--number", 4, "--out", "WORK/val.png"), "4 samples"),
        ("get_flops", ("CONFIG", "--shape", 32, 24), "32 x 24"),
        ("export", ("CONFIG", "CHECKPOINT", "--to", "torch-export", "--out", "WORK/p.pt2"), "p.pt2"),
        ("analyze", ("layers", "CONFIG", "CHECKPOINT", "--num-images", 4, "--out", "WORK/layers"), ""),
        ("report", ("CONFIG", "CHECKPOINT", "--num-images", 4, "--shown", 2, "--out", "WORK/report.html", *SQUARE), ""),
    ],
)
def test_tools(run, run_tool, tmp_path, tool, args, output):
    values = {"CONFIG": run / "scenes_config.py", "CHECKPOINT": run / "epoch_2.pth"}
    args = [values.get(arg, str(arg).replace("WORK", str(tmp_path))) for arg in args]
    done = run_tool(tool, *args)
    assert (done.code, output in done.output) == (0, True), done.output


def test_a_transfer_takes_the_backbone_of_a_classifier(run, run_tool, tmp_path):
    """The packaged weights of images of 32 pixels, whose positions are interpolated."""
    backbone = "dict(type='CRATE',arch=dict(embed_dim=96,depth=4,num_heads=4),img_size=16,patch_size=8,in_channels=1)"
    options = ("--work-dir", tmp_path, "--cfg-options", f"model.backbone={backbone}", "train_cfg.max_epochs=1")
    done = run_tool("train", run / "scenes_config.py", "--load-from", "crate_mini_digits", *options)
    assert done.code == 0, done.output
    result = result_of(tmp_path)
    assert (result["kind"], result["initialized_from"]) == ("fine-tuning", "crate_mini_digits")
    assert "embedding.pos_embed" in done.output
    probe = ("--linear-probe", "--dry-run", "--load-from", run / "epoch_2.pth")
    done = run_tool("train", run / "scenes_config.py", *probe)
    assert done.code == 0, done.output
