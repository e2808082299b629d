"""Runs of self-distillation: the same steps on any split of the batch, the log, resume, transfer."""

import copy
import os
import signal

import pytest
import torch

from crate_mm.engine import Runner, load_config, read_checkpoint
from tests.faults.test_interruptions import at_step
from tests.training import assert_same_states, result_of, scalars_of, train_on_processes

pytestmark = pytest.mark.slow
VIEWS = [
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=8, scale=(0.4, 1.0))]),
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=4, scale=(0.1, 0.4))]),
]
ARCH = dict(embed_dim=24, depth=2, num_heads=3)
MODEL = dict(
    _delete_=True,
    type="SelfDistillation",
    backbone=dict(type="CRATE", arch=ARCH, img_size=8, patch_size=2, in_channels=1, drop_path=0.0),
    group_size=8,
    hidden_dim=48,
    out_dim=8,
    momentum=0.99,
    preprocessor=dict(type="ImagePreprocessor", mean=(0.5,), std=(0.5,)),
)
OBJECTIVES = {
    "rate": {},
    "masks": {"model__patch_weight": 1.0, "model__mask_ratio": (0.2, 0.6)},
    "dino": {"model__objective": "dino", "model__prototypes": 16, "model__teacher_temp_start": 0.02},
}
ADAMW = dict(type="AdamW", lr=2e-4, weight_decay=0.04, _delete_=True)


def config(work_dir, **options):
    cfg = load_config("debug")
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.source.type = "FewDigits"
    cfg.merge_from_dict(
        dict(
            model=copy.deepcopy(MODEL),  # the merge removes _delete_
            global_batch_size=64,
            train_dataloader=dict(
                dataset=dict(_delete_=True, type="Views", views=VIEWS, source=dict(type="FewDigits", train=192))
            ),
            val_evaluator=dict(type="KNNMetric", k=5, _delete_=True),
            test_evaluator=dict(type="KNNMetric", k=5, _delete_=True),
            optim_wrapper=dict(optimizer=dict(ADAMW), clip_grad=dict(max_norm=0.3, per_parameter=True, _delete_=True)),
            param_scheduler=[
                dict(type="WarmupCosineLR", warmup=0.5, start_factor=0.0),
                dict(type="CosineWeightDecay", end_factor=10),
            ],
            default_hooks=dict(logger=dict(interval=1)),
            work_dir=str(work_dir),
        )
    )
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in options.items()})
    return cfg


def train(work_dir, launcher="none", **options):
    cfg = config(work_dir, **options)
    cfg.launcher = launcher
    Runner.from_cfg(cfg).train()


def steps(folder):
    return [row for row in scalars_of(folder) if "lr" in row]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Six steps of one process in float64, for each objective."""
    folder = tmp_path_factory.mktemp("one")
    torch.set_default_dtype(torch.float64)
    for name, options in OBJECTIVES.items():
        train(folder / name, **options)
    torch.set_default_dtype(torch.float32)
    return folder


def assert_same_steps(folder, expected):
    ours, theirs = (read_checkpoint(path / "epoch_2.pth")["state_dict"] for path in (folder, expected))
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(steps(folder), steps(expected), strict=True):
        for key in {"loss", "compression", "expansion", "expansion_max", "patch_similarity"} & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9), key


@pytest.mark.parametrize(
    ("objective", "processes", "max_batch"),
    [("rate", 2, None), ("masks", 3, 12), ("dino", 3, 12)],
)
def test_any_split_takes_the_same_steps(double, one, tmp_path, objective, processes, max_batch):
    """Uneven ones too: groups of 8 of 64 images, on 3 processes in micro-batches of 10 or 11."""
    train_on_processes(processes, tmp_path, train, **OBJECTIVES[objective], max_batch_per_device=max_batch)
    assert_same_steps(tmp_path, one / objective)


def test_log_shows_the_terms(one):
    rows = steps(one / "rate")
    assert len(rows) == 6
    for row in rows:
        assert row["loss"] == pytest.approx(-row["compression"] - row["expansion"], rel=1e-9)
        assert 0 < row["expansion"] < row["expansion_max"] == pytest.approx(rows[0]["expansion_max"], rel=1e-12)
    result = result_of(one / "rate")
    assert result["headline"]["metric"] == "knn_top1"
    assert result["last"]["knn_top1"] > 20


def _killed(work_dir, options, step):
    runner = Runner.from_cfg(config(work_dir, **options))
    at_step(runner, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    runner.train()


@pytest.mark.parametrize("objective", ["masks", "dino"])  # masks: and the rate
def test_killed_and_resumed_run_is_the_uninterrupted_one(tmp_path, objective):
    """Killed in the second of two epochs of three steps, after the checkpoint of the first."""
    options = dict(OBJECTIVES[objective], max_batch_per_device=32, model__backbone__drop_path=0.2)
    train(tmp_path / "whole", **options)
    killed = tmp_path / "killed"
    process = torch.multiprocessing.get_context("fork").Process(target=_killed, args=(killed, options, 5))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    train(killed, resume=True, load_from=str(killed / "epoch_1.pth"), **options)
    assert_same_states(tmp_path / "whole" / "epoch_2.pth", killed / "epoch_2.pth")


@pytest.mark.parametrize(("part", "holder"), [(None, "teacher.backbone."), ("backbone", "backbone.")])
def test_probe_starts_from_the_teacher_or_the_student(one, tmp_path, part, holder):
    source = one / "rate" / "epoch_2.pth"
    cfg = load_config("debug", {"load_from": str(source), "transfer_from": part, "train_cfg.max_epochs": 1})
    cfg.model.backbone = MODEL["backbone"]
    cfg.model.freeze_backbone = True
    cfg.work_dir = str(tmp_path)
    Runner.from_cfg(cfg).train()
    ours, weights = read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"], read_checkpoint(source)["state_dict"]
    names = [name for name in ours if name.startswith("backbone.")]
    for name in names:
        assert torch.equal(ours[name], weights[holder + name.removeprefix("backbone.")].float()), name
    assert len(names) > 20


def test_indivisible_batch_is_refused_at_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="60 images has no whole number of covariance groups of 8"):
        train(tmp_path, global_batch_size=60)


def test_other_loops_are_refused(tmp_path):
    runner = Runner.from_cfg(config(tmp_path, optim_wrapper__type="mmengine.OptimWrapper"))
    with pytest.raises(ValueError, match="OptimWrapper does not call the before_step of SelfDistillation"):
        runner.train()
