"""A run whose length is given in steps: it ends after exactly so many, within an epoch if need be. 10 make an epoch."""

import shutil

import pytest
import torch

from crate_mm.checkpoints import newest_checkpoint
from crate_mm.config import load_config, resolve_config
from crate_mm.engine import read_checkpoint
from tests.training import (
    SGD,
    assert_identical,
    assert_same_states,
    debug_runner,
    log_of,
    result_of,
    run,
    scalars_of,
    train_on_processes,
)


def options(steps, **others):
    return {
        "train_cfg__max_epochs": None,
        "train_cfg__max_steps": steps,
        "default_hooks__logger__interval": 1,
        **others,
    }


@pytest.fixture(scope="module")
def fifteen(tmp_path_factory):
    """The work directory of a run of 15 steps, with checkpoints at every sixth."""
    folder = tmp_path_factory.mktemp("fifteen")
    run(folder, **options(15, default_hooks__checkpoint__every_iters=6))
    return folder


def test_a_run_ends_after_its_last_step(fifteen):
    last = newest_checkpoint(fifteen)
    assert last.name == "epoch_1_iter_15.pth"
    checkpoint = read_checkpoint(last)
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]) == (1, 15)
    result = result_of(fifteen)
    assert (result["steps"], result["max_steps"], result["finished"]) == (15, 15, True)
    assert (result["epochs"], result["last"]["epoch"], result["recipe"]["max_steps"]) == (2, 2, 15)
    lines = scalars_of(fifteen)
    assert [line["iter"] for line in lines if "lr" in line] == list(range(1, 16))
    assert [line["step"] for line in lines if "eval/top1" in line] == [1, 2]
    assert "; 10 steps an epoch, 1.5 epochs, 15 steps; " in log_of(fifteen)


def test_the_schedule_ends_with_the_run(fifteen):
    rates = [line["lr"] for line in scalars_of(fifteen) if "lr" in line]
    W, T = 3, 15  # a fifth of a short run is warm-up
    warm = [1e-3 * (0.01 + 0.99 * i / W) for i in range(W)]
    cosine = [1e-3 * (1 + torch.tensor(torch.pi * (i - W) / (T - W)).cos().item()) / 2 for i in range(W, T)]
    assert rates == pytest.approx([*warm, *cosine], rel=1e-5)


@pytest.mark.slow
def test_a_run_resumed_in_its_last_epoch_is_the_uninterrupted_one(fifteen, tmp_path):
    run(tmp_path, resume=fifteen / "epoch_1_iter_12.pth", **options(15))
    assert_same_states(tmp_path / "epoch_1_iter_15.pth", fifteen / "epoch_1_iter_15.pth")
    assert result_of(tmp_path)["last"] == result_of(fifteen)["last"]


@pytest.mark.slow
def test_whole_epochs_in_steps_are_the_same_run(tmp_path):
    run(tmp_path / "steps", **options(20))
    run(tmp_path / "epochs", train_cfg__max_epochs=2)
    assert_same_states(*(tmp_path / name / "epoch_2.pth" for name in ("steps", "epochs")))
    assert not list((tmp_path / "steps").glob("*_iter_*.pth"))


@pytest.mark.slow
def test_a_longer_run_goes_on_within_the_epoch(tmp_path):
    """And validates the epoch, once it is whole."""
    run(tmp_path / "steps", **options(15, param_scheduler=None))
    run(tmp_path / "steps", resume=True, **options(23, param_scheduler=None))
    run(tmp_path / "at_once", **options(23, param_scheduler=None))
    assert_same_states(*(tmp_path / name / "epoch_2_iter_23.pth" for name in ("steps", "at_once")))
    validated = [(line["step"], line["eval/loss"]) for line in scalars_of(tmp_path / "steps") if "eval/loss" in line]
    assert [step for step, _ in validated] == [1, 2, 2, 3]
    at_once = [(line["step"], line["eval/loss"]) for line in scalars_of(tmp_path / "at_once") if "eval/loss" in line]
    assert [validated[0], *validated[2:]] == at_once


def test_a_run_shorter_than_an_epoch(tmp_path):
    run(tmp_path, **options(4))
    assert newest_checkpoint(tmp_path).name == "epoch_0_iter_4.pth"
    assert [line["step"] for line in scalars_of(tmp_path) if "eval/top1" in line] == [1]
    (best,) = tmp_path.glob("best_*.pth")
    assert read_checkpoint(best)["meta"]["iter"] == 4


def test_a_finished_run_is_validated_and_trains_no_further(fifteen, tmp_path):
    shutil.copy(fifteen / "epoch_1_iter_15.pth", tmp_path)
    runner = debug_runner(tmp_path, **options(15), load_from=str(tmp_path / "epoch_1_iter_15.pth"), resume=True)
    runner.train()
    assert runner.iter == 15
    text = log_of(tmp_path)
    assert "nothing is left to train" in text
    assert "is of step 15, and train_cfg.max_steps is 15" in text
    assert "Epoch(val) [2]" in text


@pytest.mark.slow
def test_processes_take_the_same_steps(tmp_path):
    settings = {**SGD, **options(15)}
    run(tmp_path / "one", **settings)
    one = read_checkpoint(tmp_path / "one" / "epoch_1_iter_15.pth")
    three = train_on_processes(3, tmp_path / "three", **options(15))
    assert three["meta"]["iter"] == 15
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(three["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert_identical(one["param_schedulers"], three["param_schedulers"])
    assert result_of(tmp_path / "three")["steps"] == 15


@pytest.mark.slow
def test_a_sampler_that_cannot_go_on_within_an_epoch_loses_no_last_step(tmp_path):
    cfg = options(15, train_dataloader__sampler=dict(type="DefaultSampler", shuffle=True))
    debug_runner(tmp_path, **cfg).train()
    assert read_checkpoint(tmp_path / "epoch_1_iter_15.pth")["meta"]["iter"] == 15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_steps=15), r"train_cfg has max_epochs=2 and max_steps=15: set max_epochs=None, or"),
        (dict(max_steps=0, max_epochs=None), "train_cfg.max_steps must be a positive integer, got 0"),
        (dict(max_steps=-3, max_epochs=None), "train_cfg.max_steps must be a positive integer, got -3"),
        (dict(max_steps=1.5, max_epochs=None), "train_cfg.max_steps must be a positive integer, got 1.5"),
        (dict(max_epochs=None), "train_cfg does not define the length of the run: set max_epochs or max_steps"),
    ],
)
def test_a_length_that_is_none_is_refused(settings, message):
    cfg = load_config("debug", {f"train_cfg.{key}": value for key, value in settings.items()})
    with pytest.raises(ValueError, match=message):
        resolve_config(cfg, world_size=1)


def test_a_schedule_whose_end_would_be_another_is_refused():
    schedule = dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True)
    settings = {"train_cfg.max_epochs": None, "train_cfg.max_steps": 15, "param_scheduler": schedule}
    with pytest.raises(ValueError, match=r"CosineAnnealingLR would not end with train_cfg.max_steps=15: set its end"):
        resolve_config(load_config("debug", settings), world_size=1)
    cfg = resolve_config(load_config("debug", {**settings, "param_scheduler": {**schedule, "end": 2}}), world_size=1)
    assert cfg.param_scheduler.end == 2


@pytest.mark.slow
def test_the_tools_take_it_from_the_command_line(run_tool, tmp_path):
    chosen = ("--cfg-options", "train_cfg.max_epochs=None", "train_cfg.max_steps=15")
    done = run_tool("train", "debug", "--dry-run", "--work-dir", tmp_path, *chosen)
    assert (done.code, "10 steps an epoch, 1.5 epochs, 15 steps" in done.output) == (0, True), done.output
    done = run_tool("print_config", "debug", *chosen)
    assert (done.code, "param_scheduler.end_step = 15" in done.output) == (0, True), done.output


def test_an_interval_of_validations_beyond_the_run_is_an_error(tmp_path):
    runner = debug_runner(tmp_path, **options(15, train_cfg__val_interval=3))
    with pytest.raises(ValueError, match=r"val_interval=3 counts epochs, and max_steps=15 ends in epoch 2 \(10 steps"):
        runner.build_for_training()
