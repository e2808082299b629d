"""BatchNorm in several processes: the statistics that are saved are those that all evaluate with."""

import json

import pytest
import torch
from torch import nn

from crate_mm.engine.parallel.batch_norm import SameStatistics, batch_norms, sync_batch_norm
from crate_mm.models import ImageClassifier, ToST
from crate_mm.registry import OPTIM_WRAPPERS
from tests.training import SGD, debug_runner, run, train_on_processes

MICRO = dict(embed_dim=16, depth=1, num_heads=2)
TOST = dict(type="ToST", arch=MICRO, img_size=8, patch_size=8, in_channels=1)


def test_on_gpus_they_are_of_all_processes_samples():
    """No GPU here: what reaches PyTorch is looked at instead."""
    model = ToST(MICRO, 8, 8)
    before = set(model.state_dict())
    synced, broadcasts = sync_batch_norm(model, None, "cuda")
    assert all(isinstance(module, nn.SyncBatchNorm) for module in batch_norms(synced))
    assert (len(batch_norms(synced)), broadcasts) == (3, False)
    assert set(synced.state_dict()) == before
    plain, broadcasts = sync_batch_norm(ToST(MICRO, 8, 8), False, "cuda")
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in plain.modules())
    assert broadcasts


def test_without_gpus_they_are_process_0s():
    model, broadcasts = sync_batch_norm(ToST(MICRO, 8, 8), None, "cpu")
    assert broadcasts
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert sync_batch_norm(nn.Linear(2, 2), None, "cpu")[1] is False
    with pytest.raises(ValueError, match="sync_bn needs GPUs"):
        sync_batch_norm(model, "torch", "cpu")


@pytest.mark.parametrize(("value", "right"), [("torch", True), (False, True), ("mmcv", False), (True, False)])
def test_the_setting(value, right, tmp_path):
    if right:
        debug_runner(tmp_path, sync_bn=value)
    else:
        with pytest.raises(ValueError, match="sync_bn must be one of 'torch', False, None"):
            debug_runner(tmp_path, sync_bn=value)


def train_noting(work_dir, **options):
    before = SameStatistics.before_val_epoch

    def noting(self, runner):
        def total():
            return [float(module.running_mean.double().sum()) for module in batch_norms(runner.model)]

        seen = [total()]
        before(self, runner)
        (work_dir.parent / f"{runner.rank}.json").write_text(json.dumps([*seen, total()]))

    SameStatistics.before_val_epoch = noting
    run(work_dir, **options)


@pytest.mark.slow
def test_two_processes_evaluate_with_what_is_saved(tmp_path):
    saved = train_on_processes(2, tmp_path / "w", train_noting, model__backbone=TOST, **SGD)["state_dict"]
    (own_0, shared_0), (own_1, shared_1) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert own_0 != own_1  # the last step's samples were others
    assert shared_0 == shared_1 == own_0
    assert own_0 == [float(v.double().sum()) for name, v in saved.items() if name.endswith("running_mean")]
    tracked = {name: value for name, value in saved.items() if name.endswith("num_batches_tracked")}
    assert len(tracked) == 3
    assert all(value > 0 for value in tracked.values())


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "OptimWrapper"])
def test_a_skipped_step_leaves_them_as_they_were(kind, micro_batches):
    """The second step overflows in its last micro-batch, before the first BatchNorm."""
    torch.manual_seed(0)
    model = ImageClassifier(TOST, dict(type="LinearHead", num_classes=3), dict(mean=(0.5,), std=(0.5,)))
    model.backbone = ToST(MICRO, (16, 16), 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scale = dict(loss_scale=8.0) if kind == "AmpOptimWrapper" else {}
    wrapper = OPTIM_WRAPPERS.build(dict(type=kind, optimizer=optimizer, accumulative_counts=micro_batches, **scale))
    wrapper.initialize_count_status(model, 0, 3)
    overflows = []
    model.backbone.embedding.stem[0][1].register_forward_pre_hook(
        lambda _, inputs: (inputs[0] * float("inf"),) if overflows else None
    )

    def step(wrong=False):
        for part in range(micro_batches):
            overflows[:] = [True] * (wrong and part == micro_batches - 1)
            images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
            model.train_step(dict(inputs=images, labels=torch.tensor([0, 1, 2, 0])), wrapper)
        return {name: value.clone() for name, value in model.state_dict().items()}

    model.train()
    first = step()
    assert not wrapper.skipped
    second = step(wrong=True)
    assert wrapper.skipped
    assert second.keys() == first.keys()
    for name, value in second.items():
        assert torch.equal(value, first[name]), name
    third = step()
    for name, value in third.items():
        assert value.isfinite().all(), name
        if "running" in name or "tracked" in name:
            assert not torch.equal(value, first[name]), name
    assert third["backbone.embedding.stem.0.1.num_batches_tracked"] == 2 * micro_batches
