"""Curves read from logs, and schedules, compared with what runs logged."""

import json
import math
import os
from array import array

import pytest

from crate_mm.engine import Runner, load_config
from crate_mm.engine.logs import LOG
from crate_mm.extras.curves import Point, _distinct, find_key, read_run, schedule
from tests.training import debug_config


def start(folder, time, lines):
    """Leave the log of a launch."""
    place = folder / time / "vis_data"
    place.mkdir(parents=True)
    (place / "scalars.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def launch(number, parent, iteration, run="a", **more):
    epoch = iteration // 10
    place = {"number": number, "parent": parent, "run": run, "epoch": epoch, "iter": iteration, "steps_per_epoch": 10}
    return {"launch": {**place, **more}, "step": iteration}


def step(iteration, epoch, **values):
    return {**values, "epoch": epoch, "iter": iteration, "step": iteration}


@pytest.mark.parametrize(
    "overrides",
    [
        {"param_scheduler.warmup": 0.5, "param_scheduler.end_factor": 0.1, "global_batch_size": 100},
        {"param_scheduler": [dict(type="MultiStepLR", milestones=[1], gamma=0.1, by_epoch=True)]},
        {
            "param_scheduler": [dict(type="LinearLR", begin=0, end=7, by_epoch=False)],
            "optim_wrapper.optimizer.lr": 0.01,
            "auto_scale_lr": dict(base_batch_size=64, enable=True),
        },
    ],
)
@pytest.mark.slow
def test_the_schedule_is_that_of_a_run(tmp_path, overrides):
    cfg = debug_config(default_hooks__logger__interval=1, train_cfg__max_epochs=2)
    for key, value in overrides.items():
        *above, last = key.split(".")
        holder = cfg
        for part in above:
            holder = holder[part]
        holder[last] = value
    found = schedule(cfg)
    assert list(found.values) == ["lr"]
    cfg.work_dir = str(tmp_path)
    Runner.from_cfg(cfg).train()
    logged = read_run(tmp_path)["lr"]
    assert len(logged) == len(found.values["lr"]) == 2 * found.steps
    assert [point.value for point in logged] == pytest.approx(list(found.values["lr"]), rel=1e-12)
    assert len({point.value for point in logged}) > 1
    assert schedule(cfg, samples=320) == found


def test_groups_of_parameters_have_curves_of_their_own():
    cfg = load_config("debug", {"train_cfg.max_epochs": 1})
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={"head": dict(lr_mult=0.1)})
    found = schedule(cfg)
    assert [name.partition(", at most")[0] for name in found.values] == ["lr, 1 of 2 groups", "lr, 1 of 2 groups"]
    one, tenth = found.values.values()
    assert [0.1 * value for value in one] == pytest.approx(list(tenth))


def test_curves_of_one_height_are_told_apart():
    rising, falling = array("d", [0, 1]), array("d", [1, 0])
    names = ["lr, 1 of 3 groups, at most 1", "lr, 2 of 3 groups, at most 1"]
    assert [label for label, _ in _distinct("lr", [rising, falling, falling])] == names
    assert [label for label, _ in _distinct("lr", [rising, falling])] == [
        "lr, 1 of 2 groups, at most 1",
        "lr, 1 of 2 groups, at most 1 (2)",
    ]


def test_what_is_not_known_before_is_refused(tmp_path):
    cfg = load_config("debug")
    cfg.param_scheduler = dict(type="ReduceOnPlateauLR", monitor="eval/loss")
    with pytest.raises(ValueError, match="depends on validation metrics"):
        schedule(cfg)
    with pytest.raises(ValueError, match="give the number of training images with --samples N"):
        schedule(load_config("crate_base_in1k", {"data_root": str(tmp_path / "nowhere")}))


@pytest.mark.slow
def test_a_resumed_run_is_one_curve(tmp_path):
    """Stopped twice, once to go on from an earlier checkpoint, it logs what the run that was not stopped has logged."""
    options = {"default_hooks__logger__interval": 1, "train_cfg__max_epochs": 3, "default_hooks__checkpoint": None}
    cfg = debug_config(**options)
    cfg.work_dir = str(tmp_path / "whole")
    Runner.from_cfg(cfg).train()
    whole = read_run(tmp_path / "whole")
    options.pop("default_hooks__checkpoint")
    work = tmp_path / "parts"
    for number, (epochs, of) in enumerate(((2, None), (3, 1), (3, 2))):
        cfg = debug_config(**options, param_scheduler__end=3)
        cfg.train_cfg.max_epochs, cfg.work_dir = epochs, str(work)
        if of:
            cfg.resume, cfg.load_from = True, str(work / f"epoch_{of}.pth")
        Runner.from_cfg(cfg).train()
        (logs,) = work.glob("20*")
        logs.rename(work / f"{9 - number}")  # as by a clock that goes back
    parts = read_run(work)
    for name in ("lr", "eval/top1", "eval/loss"):  # the logged loss is a mean over iterations, which begins anew
        assert parts[name] == whole[name], name
    assert [point.iteration for point in parts["loss"]] == list(range(1, 31))
    assert [point.epoch for point in parts["eval/top1"]] == [1, 2, 3]


def test_a_later_start_takes_the_place_of_what_it_takes_again(tmp_path):
    start(
        tmp_path, "3", [launch(1, None, 0), step(5, 1, loss=1.0), step(10, 1, loss=2.0), {"eval/top1": 5.0, "step": 1}]
    )
    lost = [step(15, 2, loss=3.0), step(18, 2, loss=99.0), step(20, 2, loss=99.0), {"eval/top1": 99.0, "step": 2}]
    start(tmp_path, "2", [launch(2, 1, 10), *lost])
    start(tmp_path, "1", [launch(3, 2, 16), step(17, 2, loss=4.0)])
    found = read_run(tmp_path)
    assert found["loss"] == [Point(5, 0.5, 1), Point(10, 1, 2), Point(15, 1.5, 3), Point(17, 1.7, 4)]
    assert found["eval/top1"] == [Point(10, 1.0, 5.0)]


def test_a_run_that_began_anew_leaves_nothing_of_the_earlier_one(tmp_path):
    start(
        tmp_path, "1", [launch(1, None, 0), step(2, 1, loss=9.0), step(40, 4, loss=9.0), {"eval/top1": 9.0, "step": 4}]
    )
    start(tmp_path, "2", [launch(2, None, 0, run="b"), step(10, 1, loss=1.0)])
    assert read_run(tmp_path) == {"loss": [Point(10, 1.0, 1.0)]}


def test_the_order_of_launches_is_that_of_their_numbers(tmp_path):
    second = [launch(2, 1, 10), step(15, 2, loss=3.0), {"eval/top1": 9.0, "step": 2}]
    start(tmp_path, "2025", [launch(1, None, 0), step(5, 1, loss=1.0), step(15, 2, loss=9.0), *second])
    start(tmp_path, "1970", [launch(3, 1, 12), step(20, 2, loss=4.0)])  # from the first's last checkpoint
    assert read_run(tmp_path) == {"loss": [Point(5, 0.5, 1), Point(20, 2, 4)]}


def test_another_run_in_the_folder_is_no_part_of_the_curve(tmp_path):
    start(tmp_path, "1", [launch(1, None, 0), step(10, 1, loss=1.0), launch(4, 3, 20), step(30, 3, loss=3.0)])
    start(tmp_path, "2", [launch(2, None, 0, run="b"), step(10, 1, loss=9.0), step(20, 2, loss=9.0)])
    assert [point.value for point in read_run(tmp_path)["loss"]] == [1, 3]  # the log of launch 3 is lost


@pytest.mark.slow
def test_launches_are_numbered_in_any_folder(tmp_path):
    """Whether a launch finds what it goes on from in its own folder, in one that was moved, or in another's."""
    options = {"train_cfg__max_epochs": 1, "default_hooks__logger__interval": 10}

    def train(folder, of=None):
        cfg = debug_config(**options)
        cfg.work_dir, cfg.load_from, cfg.resume = str(folder), of and str(of), of is not None
        Runner.from_cfg(cfg).train()
        lines = [json.loads(row) for file in folder.glob(f"*/{LOG}") for row in file.read_text().splitlines()]
        found = sorted((line["launch"] for line in lines if "launch" in line), key=lambda launch: launch["number"])
        return [(said["number"], said["parent"], said["iter"], said["resumed_from"]) for said in found]

    assert train(tmp_path / "a") == [(1, None, 0, None)]
    (tmp_path / "a").rename(tmp_path / "b")
    assert train(tmp_path / "b", tmp_path / "b" / "epoch_1.pth")[1:] == [(2, 1, 10, "epoch_1.pth")]
    assert train(tmp_path / "b", tmp_path / "b" / "epoch_1.pth")[2:] == [(3, 1, 10, "epoch_1.pth")]
    assert train(tmp_path / "c", tmp_path / "b" / "epoch_1.pth") == [(2, 1, 10, "epoch_1.pth")]
    assert train(tmp_path / "b")[3:] == [(4, None, 0, None)]


@pytest.mark.parametrize(
    "wrong",
    [
        launch(True, None, 0),
        launch(1, 1, 0),
        launch(1, None, -10),
        launch(10**400, None, 0),
        launch(1, None, 0, run=["a"]),
        launch(1, None, 0, steps_per_epoch=math.nan),
        {"launch": 1, "step": 0},
        {"iter": True, "loss": 9.0},
        {"iter": -5, "loss": 9.0},
        {"iter": 10**400, "loss": 9.0},
        {"iter": 1, "loss": 10**400},
        {"iter": 1, "loss": True},
    ],
)
def test_lines_that_are_none_count_for_nothing(tmp_path, wrong):
    start(tmp_path, "1", [launch(1, None, 0), step(10, 1, loss=1.0), wrong, step(20, 2, loss=2.0)])
    assert read_run(tmp_path) == {"loss": [Point(10, 1, 1), Point(20, 2, 2)]}


def test_a_log_that_is_no_file_is_refused(tmp_path):
    start(tmp_path, "1", [step(1, 1, loss=1.0)])
    (tmp_path / "1" / LOG).unlink()
    os.mkfifo(tmp_path / "1" / LOG)
    with pytest.raises(OSError, match=r"scalars\.json is not a regular file"):
        read_run(tmp_path)
    (tmp_path / "1" / LOG).unlink()
    (tmp_path / "1" / LOG).symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"scalars\.json is not a regular file"):
        read_run(tmp_path)


def test_lines_that_were_cut_off_and_numbers_that_are_none(tmp_path):
    start(tmp_path, "1", [step(1, 1, loss=math.nan, note="a text"), step(2, 1, loss=2)])
    with open(tmp_path / "1" / "vis_data" / "scalars.json", "a") as file:
        file.write('[1]\n{"iter": "x"}\n{"loss": 1.0, "ep')
    (tmp_path / "2" / "vis_data").mkdir(parents=True)
    (tmp_path / "2" / "vis_data" / "scalars.json").touch()  # of a start that logged nothing
    found = read_run(tmp_path)
    assert found.keys() == {"loss"}
    assert math.isnan(found["loss"][0].value)
    assert found["loss"][1] == Point(2, None, 2)
    assert read_run(tmp_path / "1")["loss"][1] == Point(2, None, 2)
    with pytest.raises(ValueError, match=r"has no log of a run: expected <time>/vis_data/scalars\.json in it"):
        read_run(tmp_path / "nowhere")


def test_names_may_be_short():
    known = {"loss", "eval/loss", "eval/top1", "a/x", "b/x"}
    assert [find_key(key, known) for key in ("loss", "top1", "eval/loss")] == ["loss", "eval/top1", "eval/loss"]
    with pytest.raises(ValueError, match="'x' may be a/x or b/x: give the full name"):
        find_key("x", known)
    with pytest.raises(ValueError, match="no value is logged as 'los': did you mean loss"):
        find_key("los", known)
