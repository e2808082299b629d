"""tools/analyze.py, by running it: its files, its numbers against the pure functions, and what it says to a mistake."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import init_model
from crate_mm.analysis import measures
from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.projection import pca_colors
from crate_mm.analysis.taps import capture
from crate_mm.engine import Runner, load_config, read_checkpoint
from crate_mm.inference.standalone import build_loader


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two digits as image files, of another size than the model's."""
    folder, source = tmp_path_factory.mktemp("pictures"), build_loader(load_config("debug")).dataset.source
    for i in (0, 1):
        source[i][0].resize((20, 16)).save(folder / f"{i}.png")
    return [folder / "0.png", folder / "1.png"]


def analyze(run_main, figure, checkpoint, out, *args):
    checkpoints = checkpoint if isinstance(checkpoint, list) else [checkpoint]
    done = run_main("analyze", figure, "debug", *checkpoints, "--out", out, *args)
    written = done.last_line.removeprefix("wrote ").split(", ")
    for kind in ("png", "pdf"):
        assert any(name.endswith(kind) for name in written)
    for name in written:
        if name.endswith("png"):
            assert np.asarray(Image.open(name)).std() > 1, "a picture of nothing"


def tokens_of(checkpoint, positions=None, split="test"):
    """The model, and what its taps give for images of a split."""
    model, dataset = init_model("debug", checkpoint), build_loader(load_config("debug"), split).dataset
    positions = range(len(dataset)) if positions is None else positions
    images = torch.stack([dataset[i]["inputs"] for i in positions])
    with torch.no_grad(), capture(model) as seen:
        model(model.data_preprocessor.normalize(images))
    return model, seen


@pytest.mark.slow
def test_layers(run_main, debug_checkpoint, tmp_path):
    args = ("--split", "train", "test", "--num-images", "2000")
    analyze(run_main, "layers", ["random", debug_checkpoint], tmp_path, *args)
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert {row["curve"] for row in rows} == {f"{c}, {s}" for c in ("random", "epoch_1") for s in ("train", "test")}
    model, seen = tokens_of(debug_checkpoint)
    for layer, block in enumerate(model.backbone.blocks):
        U, unit = block.compress.proj.weight.detach().T, dict(eps_squared=0.01, unit_length=True)
        half, out = seen["tap_half"][layer], seen["tap_out"][layer]
        expected = {
            "rc_half": measures.subspace_coding_rate(half @ U, 3, **unit),
            "rc_in": measures.subspace_coding_rate(seen["tap_w"][layer], 3, **unit),
            "sparsity": measures.nonzero_fraction(out),
            "r_out": measures.coding_rate(out, **unit),
            "objective": measures.sparse_rate_reduction(out, U, 3, 0.1, **unit),
        }
        for measure, values in expected.items():
            key = ("epoch_1, test", measure, str(layer + 1))
            (row,) = [r for r in rows if (r["curve"], r["measure"], r["layer"]) == key]
            assert float(row["mean"]) == pytest.approx(values.mean().item(), rel=1e-4), measure
            assert float(row["std"]) == pytest.approx(values.std().item(), rel=1e-2), measure
            assert row["images"] == "450"


@pytest.mark.slow
def test_tokens(run_main, debug_checkpoint, tmp_path):
    analyze(run_main, "tokens", debug_checkpoint, tmp_path, "--index", 7, "--block", 10, "--layers", "-1")
    found = np.load(tmp_path / "tokens.npz")
    assert {"rows", "columns", "layer_2"} == set(found)
    _, seen = tokens_of(debug_checkpoint, [7])
    expected = seen["tap_out"][1][0].T[found["rows"]][:, found["columns"]]
    assert expected.shape == (10, 10)
    np.testing.assert_allclose(found["layer_2"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_subspaces(run_main, debug_checkpoint, tmp_path):
    analyze(run_main, "subspaces", debug_checkpoint, tmp_path)
    found = json.loads((tmp_path / "subspaces.json").read_text())
    weights = read_checkpoint(debug_checkpoint)["state_dict"]
    for layer in (0, 1):
        U = weights[f"backbone.blocks.{layer}.compress.proj.weight"].T
        incoherence = measures.subspace_incoherence(U, 3).item()
        assert found["mean_abs_cosine_between_heads"][str(layer + 1)] == pytest.approx(incoherence, rel=1e-5)
        gram = torch.tensor(found["gram_of_shown_directions"][str(layer + 1)])
        assert gram.shape == (12, 12)
        torch.testing.assert_close(gram.diagonal(), torch.ones(12))


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.slow
def test_attention_at_any_resolution(run_main, debug_checkpoint, tmp_path, pictures, size):
    args = ["--images", *pictures, *(["--size", size] if size else [])]
    analyze(run_main, "attention", debug_checkpoint, tmp_path, *args)
    found = np.load(tmp_path / "attention.npz")
    side = (size or 8) // 2
    assert set(found) == {f"{i}_layer_{layer}" for i in (0, 1) for layer in (1, 2)}
    assert {a.shape for a in found.values()} == {(3, side, side)}
    if size is None:
        model = init_model("debug", debug_checkpoint)
        image = np.asarray(Image.open(pictures[0]).resize((10, 8), Image.BILINEAR))[:, 1:9]
        expected = cls_attention(model, model.data_preprocessor.normalize(torch.tensor(image)[None, None]))
        np.testing.assert_allclose(found["0_layer_1"], expected[0][0].unflatten(-1, (4, 4)), atol=0.02)


@pytest.mark.slow
def test_pca(run_main, debug_checkpoint, tmp_path, pictures):
    analyze(run_main, "pca", debug_checkpoint, tmp_path, "--images", *pictures)
    found = np.load(tmp_path / "pca.npz")
    assert found["colors"].shape == (2, 4, 4, 3)
    assert found["shown"].all()
    model = init_model("debug", debug_checkpoint)
    images = [np.asarray(Image.open(p).resize((10, 8), Image.BILINEAR))[:, 1:9] for p in pictures]
    with torch.no_grad():
        tokens = model.backbone(model.data_preprocessor.normalize(torch.tensor(np.stack(images))[:, None]))
    expected, _ = pca_colors(tokens[:, 1:])
    assert np.abs(found["colors"].reshape(2, 16, 3) - expected).mean() < 0.05
    analyze(run_main, "pca", debug_checkpoint, tmp_path, "--foreground", "--images", *pictures)
    assert not np.load(tmp_path / "pca.npz")["shown"].all()


@pytest.mark.slow
def test_features(run_main, debug_checkpoint, tmp_path):
    analyze(run_main, "features", debug_checkpoint, tmp_path, "--num-images", 60, "--split", "train")
    found = np.load(tmp_path / "features.npz")
    _, seen = tokens_of(debug_checkpoint, found["sample_idx"].tolist(), "train")
    np.testing.assert_allclose(found["features"], seen["tap_out"][-1][:, 0], rtol=1e-3, atol=1e-5)
    assert found["points"].shape == (60, 2)
    assert found["classes"].tolist() == list("0123456789")


@pytest.mark.slow
def test_the_hook_measures_while_training(tmp_path):
    hook = {"default_hooks.white_box": dict(type="WhiteBoxHook", interval=2, num_images=20)}
    cfg = load_config("debug", {"train_cfg.max_epochs": 3, **hook})
    cfg.work_dir = str(tmp_path / "with")
    runner = Runner.from_cfg(cfg)
    runner.train()
    (scalars,) = (tmp_path / "with").glob("*/vis_data/scalars.json")
    logged = {}
    for line in map(json.loads, scalars.read_text().splitlines()):
        for key, value in line.items():
            if key.startswith("white_box/sparsity"):
                logged[key, line["step"]] = value
    assert logged.keys() == {(f"white_box/sparsity/layer_0{n}", step) for n in (1, 2) for step in (1, 2, 3)}
    dataset = runner.val_dataloader.dataset
    images = torch.stack([dataset[i]["inputs"] for i in np.linspace(0, 449, 20).astype(int)])
    model = init_model("debug", tmp_path / "with" / "epoch_3.pth")
    with torch.no_grad(), capture(model) as seen:
        model(model.data_preprocessor.normalize(images))
    for layer, z in enumerate(seen["tap_out"], 1):
        expected = measures.nonzero_fraction(z).mean().item()
        assert logged[f"white_box/sparsity/layer_0{layer}", 3] == pytest.approx(expected, rel=1e-4)
    assert len(list((tmp_path / "with").glob("*/vis_data/vis_image/*.png"))) == 3
    assert list((tmp_path / "with").glob("*/vis_data/events.out.tfevents*"))

    cfg = load_config("debug", {"train_cfg.max_epochs": 3})
    cfg.work_dir = str(tmp_path / "without")
    Runner.from_cfg(cfg).train()
    weights = [read_checkpoint(tmp_path / name / "epoch_3.pth")["state_dict"] for name in ("with", "without")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items()), (
        "the hook changes the training"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(measures=["rate"]), "unknown measure 'rate'"),
        (dict(interval=0), "needs interval >= 1"),
        (dict(measures=["active"]), "the model has none of active"),
        ({}, "no val_dataloader"),
    ],
)
def test_the_hook_refuses(tmp_path, arguments, message):
    hook = {"default_hooks.white_box": dict(type="WhiteBoxHook", **arguments)}
    cfg = load_config("debug", {"train_cfg.max_epochs": 1, **hook})
    if not arguments:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.save_best = None
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()
