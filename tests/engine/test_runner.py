"""Training as the Runner does it: the same steps however they are spread, and the same run however often resumed."""

from types import SimpleNamespace

import pytest
import torch

from crate_mm.engine import Runner, RunStoppedError, load_config, read_checkpoint
from tests.training import assert_identical, train


@pytest.mark.slow
def test_seeds_matter_and_repeat(epoch, tmp_path):
    one = read_checkpoint(epoch / "epoch_1.pth")["state_dict"]
    again, other = (
        train(tmp_path / str(seed), train_cfg__max_epochs=1, randomness__seed=seed)["state_dict"] for seed in (0, 4)
    )
    assert_identical(one, again)
    assert not torch.equal(one["head.fc.weight"], other["head.fc.weight"])


def test_classes_are_compared_by_name(tmp_path, debug_checkpoint, monkeypatch):
    from crate_mm.datasets import Digits

    original = Digits.__init__

    def renamed(self, split="train"):
        original(self, split)
        if split == "test":
            self.classes = [*"012345678", "nine"]

    monkeypatch.setattr(Digits, "__init__", renamed)
    with pytest.raises(ValueError, match="class 9 is 9 in training data and nine in the validation data"):
        train(tmp_path)
    cfg = load_config("debug")
    cfg.work_dir, cfg.load_from = str(tmp_path / "test"), str(debug_checkpoint)
    with pytest.raises(ValueError, match=r"class 9 is 9 in .*epoch_1.pth and nine in the test data"):
        Runner.from_cfg(cfg).test()


def test_a_gpu_process_wraps_its_model_on_its_gpu(monkeypatch):
    """No GPU here: what reaches PyTorch is looked at instead."""
    from crate_mm.engine.parallel import ddp as module

    seen = {}
    monkeypatch.setattr(module, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(module, "MMDistributedDataParallel", lambda **kwargs: seen.update(kwargs))
    model = SimpleNamespace(to=lambda device: device)
    module.share_model(model, dict(ddp=dict(static_graph=True)))
    assert (seen["module"], seen["device_ids"], seen["find_unused_parameters"]) == ("cuda", [3], False)
    assert seen["static_graph"] is True


def test_classes_must_match_the_head(tmp_path):
    with pytest.raises(ValueError, match=r"10 classes \(0, 1, 2, ...\), the head 7: .*model.head.num_classes=10"):
        train(tmp_path, model__head__num_classes=7)


def test_too_many_unreadable_images_stop_the_run(tmp_path, image_tree):
    for file in sorted((image_tree / "train").rglob("*.JPEG"))[:3:2]:
        file.write_bytes(b"")
    overrides = {
        "data_root": str(image_tree),
        "model.head.num_classes": 3,
        "model.backbone.img_size": 32,
        "model.backbone.patch_size": 8,
        "global_batch_size": 6,
        "train_cfg.max_epochs": 1,
        "train_dataloader.num_workers": 0,
        "val_dataloader.num_workers": 0,
        "train_dataloader.dataset.transforms.0.size": 32,
        "val_dataloader.dataset.transforms.1.size": 32,
        "train_dataloader.dataset.max_unreadable": 1,
    }
    cfg = load_config("crate_tiny_in1k", overrides)
    cfg.model.backbone.arch = dict(embed_dim=24, depth=1, num_heads=3)
    cfg.work_dir = str(tmp_path / "run")
    with pytest.raises(RunStoppedError, match=r"2 train images cannot be read.*max_unreadable=1"):
        Runner.from_cfg(cfg).train()


def test_averaged_weights_start_from_the_loaded_ones(tmp_path, debug_checkpoint):
    """``load_from`` in a config, with averaging: the average starts at the backbone that was taken over."""
    checkpoint = train(
        tmp_path,
        load_from=str(debug_checkpoint),
        ema_momentum=1e-6,
        optim_wrapper__optimizer__lr=1e-9,
        train_cfg__max_epochs=1,
    )
    source = read_checkpoint(debug_checkpoint)["state_dict"]
    for key, value in checkpoint["state_dict"].items():
        close = torch.allclose(value, source[key], atol=1e-4)
        assert close or key.startswith("head."), key
    assert not torch.allclose(checkpoint["state_dict"]["head.fc.weight"], source["head.fc.weight"], atol=1e-4)
    assert checkpoint["meta"]["initialized_from"] == str(debug_checkpoint)


@pytest.mark.parametrize("first", ["val", "test"])
def test_validation_and_test_by_themselves(tmp_path, debug_checkpoint, first):
    cfg = load_config("debug")
    cfg.work_dir, cfg.load_from = str(tmp_path), str(debug_checkpoint)
    runner = Runner.from_cfg(cfg)
    figures = [runner.val(), runner.test()] if first == "val" else [runner.test(), runner.val()]
    assert figures[0] == figures[1]
    assert 0 < figures[0]["eval/top1"] <= 100
    assert not (tmp_path / "result.json").exists(), "nothing was trained"
