"""Runs of every family with parts of its own, with the same config: resumed, published, transferred."""

import shutil

import pytest
import torch

from crate_mm import Predictor, init_model
from crate_mm.checkpoints import open_checkpoint
from crate_mm.checkpoints.publish import publish
from crate_mm.datasets import Digits
from crate_mm.engine import Runner, read_checkpoint
from crate_mm.models import Positions
from crate_mm.registry import head_for
from tests.models.test_families import FAMILIES
from tests.training import assert_same_states, debug_config

pytestmark = pytest.mark.slow
OTHERS = [family for family in FAMILIES if family not in ("CRATE", "ViT")]  # CRATE is trained everywhere; ViT is plain
RESIZED = [dict(type="Resize", size=16)]


def config(family, work_dir, **options):
    cfg = debug_config(train_cfg__max_epochs=2, global_batch_size=106, **options)
    arch = dict(embed_dim=48, depth=2, num_heads=3)
    cfg.model.backbone = dict(type=family, arch=arch, img_size=16, patch_size=8, in_channels=1)
    cfg.model.head = dict(type="LinearHead", num_classes=10, pool="cls", **head_for(family))
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.transforms = RESIZED
    cfg.train_dataloader.dataset.transforms = [*RESIZED, dict(type="RandomAffine", degrees=15)]
    cfg.work_dir = str(work_dir)
    return cfg


@pytest.fixture(scope="module", params=OTHERS)
def run(request, tmp_path_factory):
    """(the family, the folder of a run of two epochs)"""
    folder = tmp_path_factory.mktemp(request.param)
    Runner.from_cfg(config(request.param, folder)).train()
    return request.param, folder


def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    family, folder = run
    shutil.copy(folder / "epoch_1.pth", tmp_path)
    cfg = config(family, tmp_path)
    cfg.resume, cfg.load_from = True, str(tmp_path / "epoch_1.pth")
    Runner.from_cfg(cfg).train()
    whole, resumed = (read_checkpoint(at / "epoch_2.pth") for at in (folder, tmp_path))
    assert_same_states(whole, resumed)
    first = read_checkpoint(folder / "epoch_1.pth")["state_dict"]
    moved = [name for name, value in whole["state_dict"].items() if not torch.equal(value, first[name])]
    assert set(moved) >= {name for name, _ in init_model(None, folder / "epoch_2.pth").named_parameters()}


def test_a_published_model_predicts_as_the_checkpoint(run, tmp_path):
    _, folder = run
    publish(open_checkpoint(folder / "epoch_2.pth"), tmp_path / "x.safetensors")
    images = [Digits("test")[number][0] for number in range(5)]
    one, other = (Predictor(init_model(None, file)) for file in (folder / "epoch_2.pth", tmp_path / "x.safetensors"))
    assert one(images) == other(images)


def test_its_backbone_starts_another_task_at_another_size(run, tmp_path):
    """Without a rate to speak of, what training leaves is what was taken over."""
    family, folder = run
    cfg = config(family, tmp_path, optim_wrapper__optimizer__lr=1e-30, optim_wrapper__optimizer__weight_decay=0.0)
    cfg.model.backbone.img_size = 24
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.transforms = [dict(type="Resize", size=24)]
    cfg.train_cfg.max_epochs = 1
    cfg.load_from = str(folder / "epoch_2.pth")
    runner = Runner.from_cfg(cfg)
    runner.train()
    before, after = (read_checkpoint(file)["state_dict"] for file in (cfg.load_from, tmp_path / "epoch_1.pth"))
    resized = {
        f"backbone.{name}" for name, how in runner.model.backbone.resizable().items() if isinstance(how, Positions)
    }
    for name, value in before.items():
        if name in resized:
            assert (value.shape[1], after[name].shape[1]) == (1 + 4, 1 + 9), name
        elif name.startswith("backbone.") and not ("running_" in name or "num_batches" in name):
            assert torch.equal(after[name], value), name
    assert not torch.equal(after["head.fc.weight"], before["head.fc.weight"])
