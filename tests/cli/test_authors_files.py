"""A file of each kind that is in circulation, as its authors write it, through every tool that takes a checkpoint."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import from_official, init_model
from crate_mm.analysis.gather import measure_layers
from crate_mm.engine import read_checkpoint
from tests.checkpoints.test_official import CRATE_REF, alpha, crate, official_mae, renamed, tost, trained
from tests.conftest import ROOT, make_image_tree
from tests.models.test_alpha import jax_state_dict

pytestmark = pytest.mark.slow
D = CRATE_REF["config"]["dim"]
SIZES = dict(arch=dict(embed_dim=D, depth=2, num_heads=3), img_size=32, patch_size=8)
HEADS = dict(num_heads=3)


def demo():
    torch.manual_seed(0)
    further = {"head.weight": torch.randn(21, D).double(), "head.bias": torch.randn(21).double()}
    head = {"mlp_head.1.weight": torch.randn(D, D).double(), "mlp_head.1.bias": torch.randn(D).double()}
    return {"model": {**crate(), **head, **further}}


FILES = {  # what the file holds, the family, its classes, what its shapes do not tell
    "crate_small.pth": (lambda: {"state_dict": renamed(crate(), "module.")}, "CRATE", 10, HEADS),
    "crate-demo.pth": (demo, "CRATE", D, HEADS),
    "crate_base8_in21k.pth": (lambda: {"model": crate()}, "CRATE", 10, HEADS),
    "crate_mae_base.pth": (lambda: trained(official_mae(dtype=torch.float64)), "CRATEMAE", 10, HEADS),
    "crate_alpha_B16.pth": (alpha, "CRATEAlpha", 10, HEADS),
    "crate_alpha.npz": (lambda: jax_state_dict("params/", False), "CRATEAlpha", 10, {}),
    "tost_small.pth": (lambda: {**trained(tost()), "model_ema": tost()}, "ToST", 10, dict(img_size=32)),
}


# One whose weights have other shapes, one with a decoder, one with statistics: the rest is as one of these to a tool.
THROUGH_ALL = ["crate_alpha.npz", "crate_mae_base.pth", "tost_small.pth"]
through_all = pytest.mark.parametrize("case", THROUGH_ALL, indirect=True)


@pytest.fixture(scope="module", params=FILES)
def case(request, tmp_path_factory):
    """(the file, a config for it, whether it is an autoencoder, what its shapes do not tell)"""
    contents, family, classes, given = FILES[request.param]
    folder = tmp_path_factory.mktemp("authors")
    make_image_tree(folder / "images", classes=classes, train=2, val=1)
    file = folder / request.param
    if file.suffix == ".npz":
        np.savez(file, **{name: value.numpy() for name, value in contents().items()})
    else:
        torch.save(contents(), file)
    autoencoder = family == "CRATEMAE"
    own = {"CRATE": {}, "CRATEMAE": {"norm": False}}.get(family, {"norm_eps": 1e-6})
    if request.param == "crate_alpha_B16.pth":
        own = {}
    head = dict(type="LinearHead", num_classes=classes, **own)
    model = dict(type="ImageClassifier", backbone=dict(type=family, **SIZES), head=head)
    model["preprocessor"] = dict(type="ImagePreprocessor", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    lines = [
        f"_base_ = {str(ROOT / 'configs/transfer/folder.py')!r}",
        f"data_root = {str(folder / 'images')!r}",
        f"model = dict({', '.join(f'{key}={value!r}' for key, value in model.items())})",
        "test_transforms = [dict(type='Resize', size=(32, 32))]",
        "val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(transforms=test_transforms))",
        "test_dataloader = val_dataloader",
        "train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(transforms=test_transforms))",
        "optim_wrapper = dict(optimizer=dict(lr=1e-12, weight_decay=0.0))",
        "train_cfg = dict(max_epochs=1)",
        "global_batch_size = 4",
    ]
    (folder / "own.py").write_text("\n".join(lines))
    return file, folder / "own.py", autoencoder, given


def preprocessed(config: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The validation images as the config's tests prepare them, and their labels."""
    files = sorted((config.parent / "images" / "val").glob("*/*"))
    resized = [np.asarray(Image.open(file).resize((32, 32), Image.BILINEAR)) for file in files]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
    return (pixels / 255 - 0.5) / 0.25, torch.arange(len(files))


def weights_of(model):
    """What a training step without a rate leaves as it is."""
    state = model.backbone.state_dict()
    return {f"backbone.{key}": value.float() for key, value in state.items() if "running_" not in key}


@through_all
def test_train_from_it(case, run_tool, tmp_path):
    file, config, _, given = case
    done = run_tool("train", config, "--load-from", file, "--work-dir", tmp_path / "run")
    assert done.code == 0, done.output
    trained_on = read_checkpoint(tmp_path / "run" / "epoch_1.pth")["state_dict"]
    for name, value in weights_of(from_official(file, **given)).items():
        if "num_batches" not in name:
            torch.testing.assert_close(trained_on[name], value, msg=name)


@through_all
def test_test_it(case, run_main, tmp_path):
    file, config, autoencoder, given = case
    args = ("--work-dir", tmp_path, "--json", tmp_path / "figures.json")
    done = run_main("test", config, file, *args, code=2 if autoencoder else 0)
    if autoencoder:
        assert "crate_mae_base.pth does not fit the model: head.fc.weight is missing" in done.last_line
        return
    pixels, labels = preprocessed(config)
    with torch.no_grad():
        logits = from_official(file, **given).float()(pixels)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert json.loads((tmp_path / "figures.json").read_text())["loss"] == pytest.approx(loss, rel=1e-4)


@through_all
def test_analyze_it(case, run_main, tmp_path):
    file, config, _, given = case
    run_main("analyze", "layers", config, file, "--split", "val", "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    model = from_official(file, **given).float()
    with torch.no_grad(), measure_layers(model, measures=["r_out"]) as measures:
        model.backbone(preprocessed(config)[0])
    drawn = [float(row["mean"]) for row in rows if row["measure"] == "r_out"]
    assert drawn == pytest.approx(measures.means("r_out"), rel=1e-4)


def test_convert_it_and_build_it(case, run_main, tmp_path):
    """The converted file says its model, and is that which ``from_official`` builds."""
    file, _, _, given = case
    options = [f"--given={key}={value}" for key, value in given.items() if key != "num_heads"]
    options += ["--num-heads", given["num_heads"]] if "num_heads" in given else []
    run_main("convert_official", file, tmp_path / "ours.pth", *options)
    converted, direct = init_model(None, tmp_path / "ours.pth"), from_official(file, **given)
    for name, value in direct.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value.to(converted.state_dict()[name].dtype)), name
    if "num_heads" in given:
        with pytest.raises(ValueError, match=r"num_heads|--num-heads"):
            init_model(None, file)
