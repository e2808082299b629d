"""The figure of a masked autoencoder's reconstructions."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm.analysis.figures import FigureInput
from crate_mm.analysis.figures.reconstruct import NORMALIZED, Reconstruct
from crate_mm.registry import MODELS

BACKBONE = dict(type="CRATEMAE", arch=dict(embed_dim=24, depth=1, num_heads=3), img_size=(8, 12), patch_size=4)
CONFIG = """
_base_ = ["{configs}/crate_mae_mini_fashion_mnist.py"]
model = dict(backbone=dict(arch=dict(embed_dim=24, depth=2, num_heads=3)), decoder=dict(depth=1, num_heads=3))
"""


def options(**given):
    return argparse.Namespace(**{"layers": None, "seed": 0, **given})


def subject(norm_pix_loss, channels=3):
    torch.manual_seed(0)
    preprocessor = dict(mean=(0.5,) * channels, std=(0.25,) * channels)
    backbone = {**BACKBONE, "in_channels": channels}
    parts = dict(backbone=backbone, mask_ratio=0.5, norm_pix_loss=norm_pix_loss, preprocessor=preprocessor)
    model = MODELS.build(dict(type="MaskedAutoencoder", **parts)).eval()
    images = torch.randint(0, 256, (2, channels, 8, 12), dtype=torch.uint8)
    return FigureInput("", model, [{"inputs": images}]), images


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_seen_stays_and_what_is_hidden_is_predicted(norm_pix_loss, channels):
    given, images = subject(norm_pix_loss, channels)
    drawn = Reconstruct().run([given], options())
    found = drawn.numbers["reconstruct.npz"]
    assert np.array_equal(found["image"], images.permute(0, 2, 3, 1))
    assert found["mask"].sum(axis=1).tolist() == [3, 3]
    hidden = found["mask"].reshape(2, 2, 3).repeat(4, axis=1).repeat(4, axis=2)
    assert np.array_equal(found["filled"][~hidden], found["image"][~hidden])
    assert (found["filled"][hidden] != found["image"][hidden]).mean() > 0.5
    assert drawn.note == (NORMALIZED if norm_pix_loss else "")
    title = drawn.pictures["reconstruct"].get_suptitle()
    assert title.startswith("CRATEMAE: 50 % of the patches masked, seed 0")
    assert (NORMALIZED in title) == norm_pix_loss


def test_the_seed_chooses_the_masks():
    given, _ = subject(False)
    masks = [Reconstruct().run([given], options(seed=s)).numbers["reconstruct.npz"]["mask"] for s in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_layers_are_refused():
    given, _ = subject(False)
    with pytest.raises(ValueError, match="reconstruct uses the full model: remove --layers"):
        Reconstruct().run([given], options(layers=[0]))


@pytest.mark.slow
def test_the_command_takes_the_decoder_of_the_checkpoint(run_tool, tmp_path):
    from crate_mm.config import CONFIGS, load_config

    (tmp_path / "mae.py").write_text(CONFIG.format(configs=CONFIGS))
    cfg = load_config(tmp_path / "mae.py")
    torch.manual_seed(7)
    model = MODELS.build(cfg.model).eval()
    torch.save({"meta": {"model": cfg.model.to_dict()}, "state_dict": model.state_dict()}, tmp_path / "mae.pth")
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    files = (tmp_path / "mae.py", tmp_path / "mae.pth", "--images", tmp_path / "a.png", "--out", tmp_path / "out")
    done = run_tool("analyze", "reconstruct", *files)
    assert done.code == 0, done.output
    assert NORMALIZED in done.output
    written = np.load(tmp_path / "out" / "reconstruct.npz")
    expected = Reconstruct().run([FigureInput("", model, [{"inputs": torch.tensor(image)[None, None]}])], options())
    expected = expected.numbers["reconstruct.npz"]
    assert np.array_equal(written["mask"], expected["mask"])
    assert np.abs(written["filled"].astype(int) - expected["filled"].astype(int)).max() <= 1
    assert (tmp_path / "out" / "reconstruct.png").is_file()
    done = run_tool("analyze", "reconstruct", *files, "--size", 56)
    assert done.code == 2
    assert "backbone.embedding.pos_table is (1, 17, 24) in the file and (1, 65, 24) in the model" in done.last_line
