"""Runs that are killed, asked to stop, or cannot write: what is lost is nothing."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from crate_mm.checkpoints import write_checkpoint
from crate_mm.checkpoints.files import training_checkpoints
from crate_mm.engine import RunInterruptedError, RunStoppedError, newest_checkpoint, read_checkpoint
from crate_mm.engine.safety.signals import EXIT_INTERRUPTED, EXIT_PREEMPTED, Signals
from crate_mm.registry import RUNNERS
from tests.conftest import ROOT, start
from tests.training import AUGMENT, assert_same_states, debug_config, log_of, result_of


def build(work_dir: Path, augment: bool = True, **overrides):
    """A Runner of configs/debug.py with augmentation and averaging, which goes on from what is in its folder."""
    cfg = debug_config(**{"ema_momentum": 0.1, **overrides})
    cfg.train_dataloader.dataset.transforms = AUGMENT if augment else []
    cfg.work_dir = str(work_dir)
    newest = newest_checkpoint(work_dir)
    if newest:
        cfg.resume, cfg.load_from = True, str(newest)
    return RUNNERS.get("Runner").from_cfg(cfg)


def names(folder: Path) -> list[str]:
    return [path.name for path in training_checkpoints(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The end of two epochs that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    build(folder).train()
    return folder / "epoch_2.pth"


def at_step(runner, step: int, act) -> None:
    """Do something in the midst of a step, counted from 1 over the whole run."""
    hook = Hook()
    hook.before_train_iter = lambda runner, batch_idx, data_batch=None: runner.iter + 1 == step and act()
    runner.register_hook(hook)


# The 10th step is the last of an epoch, after which there is the epoch's own checkpoint to write, and the validation.
@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(1, signal.SIGTERM, EXIT_PREEMPTED), (10, signal.SIGINT, EXIT_INTERRUPTED)],
)
@pytest.mark.slow
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, whole, number, code, step):
    runner = build(tmp_path)
    at_step(runner, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(RunInterruptedError, match=f"stopped by {number.name}, .*epoch_0_iter_{step}.pth; --resume"):
        runner.train()
    assert names(tmp_path) == [f"epoch_0_iter_{step}.pth"]
    assert RunInterruptedError(number, "").code == code
    build(tmp_path).train()
    assert_same_states(tmp_path / "epoch_2.pth", whole)


def test_what_was_there_before_is_there_after():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with Signals():
        assert not [number for number, handler in before.items() if signal.getsignal(number) == handler]
    assert before == {number: signal.getsignal(number) for number in before}


def test_the_second_ctrl_c_ends_at_once(monkeypatch):
    clock = iter([0.0, 0.5, 5.0])
    monkeypatch.setattr("crate_mm.engine.safety.signals.time.monotonic", lambda: next(clock))
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # half a second later: the launcher's copy of the first
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_in_a_thread_catches_no_signals(tmp_path):
    runner = build(tmp_path, train_cfg__max_epochs=1)
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join()
    assert names(tmp_path) == ["epoch_1.pth"]


@pytest.mark.slow
def test_an_interrupted_validation_is_made_up_for(tmp_path, whole):
    runner = build(tmp_path)
    hook = Hook()
    hook.after_val_iter = lambda *args, **kwargs: runner.epoch == 1 and os.kill(os.getpid(), signal.SIGTERM)
    runner.register_hook(hook, priority="VERY_HIGH")
    with pytest.raises(RunInterruptedError, match=r"the newest checkpoint is .*epoch_1.pth"):
        runner.train()
    runner = build(tmp_path)
    epochs = []
    hook = Hook()
    hook.after_val_epoch = lambda runner, metrics=None: epochs.append(runner.epoch)
    runner.register_hook(hook)
    runner.train()
    assert epochs == [1, 2]
    info = read_checkpoint(tmp_path / "epoch_2.pth")["message_hub"]["runtime_info"]
    assert info["best_score"] == read_checkpoint(whole)["message_hub"]["runtime_info"]["best_score"]


@pytest.mark.parametrize("every", [dict(every_iters=3), dict(every_minutes=1e-9)])
@pytest.mark.slow
def test_checkpoints_within_an_epoch(tmp_path, whole, every):
    options = {f"default_hooks__checkpoint__{key}": value for key, value in every.items()}
    runner = build(tmp_path, **options)
    at_step(runner, 18, lambda: runner.finish_checkpoint() and shutil.copytree(tmp_path, tmp_path.with_suffix(".copy")))
    runner.train()
    newest = 15 if "every_iters" in every else 17
    copy = tmp_path.with_suffix(".copy")
    assert names(copy)[0] == "epoch_1.pth"
    assert names(copy)[-1] == f"epoch_1_iter_{newest}.pth"
    assert len(names(copy)) == 3  # and the one before it
    assert_same_states(tmp_path / "epoch_2.pth", whole)
    if "every_iters" in every:
        build(copy).train()
        assert_same_states(copy / "epoch_2.pth", whole)


def test_a_sampler_that_cannot_go_on_is_named(tmp_path):
    runner = build(tmp_path)
    at_step(runner, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunInterruptedError):
        runner.train()
    other = build(tmp_path, train_dataloader__sampler=dict(type="DefaultSampler", shuffle=True))
    with pytest.raises(ValueError, match="is from within an epoch, where DefaultSampler cannot resume"):
        other.train()


def full_disk(monkeypatch, failing: set[int]) -> None:
    """Let the n-th writes of checkpoints fail, counted from 1."""
    count = iter(range(1, 1000))

    def fail(contents, path):
        if next(count) in failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_checkpoint(contents, path)

    monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", fail)


EACH_STEP = dict(default_hooks__checkpoint__every_iters=1, default_hooks__checkpoint__save_best=None)


@pytest.mark.slow
def test_a_run_outlives_a_full_disk(tmp_path, whole, monkeypatch):
    full_disk(monkeypatch, {3, 4, 6, 10, 11})
    build(tmp_path, **EACH_STEP).train()
    assert_same_states(tmp_path / "epoch_2.pth", whole)
    assert log_of(tmp_path).count("could not write the checkpoint: [Errno 28] No space left on device") == 5


def test_a_run_stops_when_nothing_can_be_written(tmp_path, monkeypatch):
    full_disk(monkeypatch, {4, 5, 6})
    with pytest.raises(RunStoppedError, match=r"could not be written 3 times in a row \(.*No space left on device"):
        build(tmp_path, **EACH_STEP).train()
    assert names(tmp_path) == ["epoch_0_iter_2.pth", "epoch_0_iter_3.pth"]
    assert newest_checkpoint(tmp_path).name == "epoch_0_iter_3.pth"


@pytest.mark.slow
def test_the_best_one_so_far_outlives_a_full_disk(tmp_path, monkeypatch):
    options = dict(train_cfg__max_epochs=1)
    build(tmp_path, **options).train()
    (best,) = tmp_path.glob("best_*")
    kept = best.read_bytes()
    # 1: epoch 2, 2: its best, 3: epoch 2 with the best's score
    full_disk(monkeypatch, {2})
    build(tmp_path, train_cfg__max_epochs=2, optim_wrapper__optimizer__lr=3e-3).train()
    assert [path.name for path in tmp_path.glob("best_*")] == [best.name]
    assert best.read_bytes() == kept
    info = read_checkpoint(tmp_path / "epoch_2.pth")["message_hub"]["runtime_info"]
    assert Path(info["best_ckpt"]).name == best.name


@pytest.mark.slow
def test_the_writes_of_one_moment_count_once(tmp_path, monkeypatch):
    full_disk(monkeypatch, {1, 2, 3, 4})  # epoch 1, its best, epoch 1 with the score of this, and without
    build(tmp_path).train()
    assert names(tmp_path) == ["epoch_2.pth"]
    assert len(list(tmp_path.glob("best_*"))) == 1
    assert "best_score" in read_checkpoint(tmp_path / "epoch_2.pth")["message_hub"]["runtime_info"]


def test_a_best_one_that_could_not_be_written_was_none(tmp_path, monkeypatch):
    full_disk(monkeypatch, {2})
    build(tmp_path, train_cfg__max_epochs=1).train()
    info = read_checkpoint(tmp_path / "epoch_1.pth")["message_hub"]["runtime_info"]
    assert not [key for key in info if key.startswith("best_")]


def test_what_does_not_read_back_stops_the_run_in_the_end(tmp_path, monkeypatch):
    def cut_off(contents, path):
        write_checkpoint(contents, path)
        path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", cut_off)
    with pytest.raises(RunStoppedError, match=r"could not be written 3 times in a row .*is damaged"):
        build(tmp_path, **EACH_STEP).train()
    assert names(tmp_path) == []


def test_a_signal_counts_where_nothing_can_be_printed(monkeypatch):
    def gone(descriptor, data):
        raise BrokenPipeError

    with Signals() as signals:
        monkeypatch.setattr(os, "write", gone)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT


BEFORE_TRAINING = """
import os, sys
from crate_mm.cli.options import *
from crate_mm.engine.safety.signals import *
raise_on_signal()
sys.stdout = open(sys.argv[1], "w", buffering=1)
with user_errors():
    os.kill(os.getpid(), int(sys.argv[2]))
    print("still here")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_ends_the_program_with_its_code(tmp_path, run_tool, number):
    (tmp_path / "before.py").write_text(BEFORE_TRAINING)
    done = run_tool(str(tmp_path / "before"), tmp_path / "stdout", int(number))
    assert done.code == EXIT_PREEMPTED
    assert (tmp_path / "stdout").read_text() == ""
    assert done.last_line.startswith(f"stopped by {number.name}, before the first step")


def wait_in_a_call(ready) -> None:
    with Signals():
        ready.set()
        torch.linalg.svd(torch.randn(8000, 8000))


@pytest.mark.slow
def test_the_second_ctrl_c_ends_a_process_that_waits():
    """In a call that hears no signals, as one that waits for another process."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=wait_in_a_call, args=(ready,))
    process.start()
    assert ready.wait(30)
    for _ in range(2):
        time.sleep(1.2)
        os.kill(process.pid, signal.SIGINT)
    process.join(30)
    process.kill()
    assert process.exitcode == EXIT_INTERRUPTED


# As root of a namespace of its own, which the system may refuse (85 would be another code, and so would 1 and 2).
ON_A_SMALL_DISK = """
import ctypes, os, runpy, shutil, sys
train, disk, saved, *arguments = sys.argv[1:]
libc, ids = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
refused = libc.unshare(0x10000000 | 0x00020000)  # the user's names, and the mounts
if not refused:
    open("/proc/self/setgroups", "w").write("deny")
    for name, number in zip(("uid_map", "gid_map"), ids):
        open(f"/proc/self/{name}", "w").write(f"0 {number} 1")
    refused = libc.mount(b"none", disk.encode(), b"tmpfs", 0, b"size=1m")
if refused:
    print("refused:", os.strerror(ctypes.get_errno()))
    sys.exit(77)
sys.argv = [train, *arguments]
try:
    runpy.run_path(train, run_name="__main__")
finally:
    shutil.copytree(disk + "/run", saved)
"""


@pytest.mark.slow
def test_a_disk_of_one_megabyte(tmp_path, run_tool):
    """A real one, where the system lets an ordinary process have it."""
    disk, saved, epochs = tmp_path / "disk", tmp_path / "saved", 9
    disk.mkdir()
    (tmp_path / "small.py").write_text(ON_A_SMALL_DISK)
    (tmp_path / "config.py").write_text(FEW.format(root=ROOT))
    options = [f"train_cfg.max_epochs={epochs}", "ema_momentum=0.1", "default_hooks.checkpoint.max_keep_ckpts=-1"]
    train = [ROOT / "tools/train.py", disk, saved, tmp_path / "config.py", "--work-dir", disk / "run"]
    done = run_tool(str(tmp_path / "small"), *train, "--cfg-options", *options)
    if done.code == 77:
        pytest.skip(f"no mount namespaces here: {done.last_line}")
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    assert "could not be written 3 times in a row" in done.last_line
    assert newest_checkpoint(saved) == training_checkpoints(saved)[-1]
    assert 1 < len(names(saved)) < epochs - 2
    for folder in (saved, tmp_path / "alone"):  # and with more room, it goes on as if nothing had been
        build(folder, train_cfg__max_epochs=epochs, augment=False).train()
    assert_same_states(saved / f"epoch_{epochs}.pth", tmp_path / "alone" / f"epoch_{epochs}.pth")


HOOK = """
import os
from mmengine.hooks import Hook
from crate_mm.registry import HOOKS

def break_reading(runner, error, times):
    source = type(runner.train_dataloader.dataset.source)
    read, left = source.__getitem__, [error] * times

    def fail(self, index):
        if left:
            raise left.pop()
        return read(self, index)

    source.__getitem__ = fail

@HOOKS.register_module()
class Accident(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ["RANK"] in "{ranks}" and runner.iter == 15 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            {accident}
"""
FEW = """
_base_ = "{root}/configs/debug.py"
global_batch_size = 32
train_dataloader = dict(dataset=dict(source=dict(type="FewDigits")))
val_dataloader = test_dataloader = dict(dataset=dict(source=dict(type="FewDigits")))
"""
ACCIDENT = """
custom_imports = dict(imports=["accident"])
default_hooks = dict(accident=dict(type="Accident"))
"""


def write_accident(tmp_path: Path, accident: str, ranks: str = "1") -> list:
    """Write a config with an accident in the 16th step of some processes; return the arguments that train it."""
    (tmp_path / "accident.py").write_text(HOOK.format(accident=accident, ranks=ranks))
    (tmp_path / "config.py").write_text(FEW.format(root=ROOT) + ACCIDENT)
    return [tmp_path / "config.py", "--work-dir", tmp_path / "run"]


@pytest.fixture
def train_with_accident(tmp_path, recorded):
    """Train by the launcher, as tools/dist_train.sh starts it; return its exit code and output."""

    def train(accident: str, **env: str) -> tuple[int, str]:
        config, *rest = write_accident(tmp_path, accident)
        (_, *arguments), env = recorded("dist_train.sh", str(config), "2", *map(str, rest), **env)
        env["PYTHONPATH"] = str(tmp_path)
        log = tmp_path / "log"
        launcher = start(ROOT / "tools" / "torchrun.py", arguments, log, ROOT, env)
        launcher.join(200)
        end = time.monotonic() + 60
        while launcher.exitcode and "stopped by" not in log.read_text():  # its processes may end after it
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        return launcher.exitcode, log.read_text()

    return train


@pytest.mark.slow
def test_the_process_that_fails_first_speaks_first(tmp_path, run_processes):
    accident = write_accident(tmp_path, "raise RuntimeError('the cat sat on the keyboard')")
    done = run_processes("train", *accident, ends_others=True)
    assert done.code == 1
    first = done.output[done.output.index("Traceback") :]
    second = first.find("Traceback", 10)
    assert 0 < first.index("RuntimeError: the cat sat on the keyboard") < (second if second > 0 else len(first))


@pytest.mark.slow
def test_an_elastic_restart_resumes_by_itself(tmp_path, train_with_accident):
    code, output = train_with_accident("os.kill(os.getpid(), 9)", MAX_RESTARTS="1")
    assert code == 0, output
    assert names(tmp_path / "run") == ["epoch_1.pth", "epoch_2.pth"]
    assert "resumed epoch: 1, iter: 10" in output


@pytest.mark.slow
def test_when_one_process_cannot_load_its_data_all_save_and_stop(tmp_path, run_processes):
    done = run_processes(
        "train", *write_accident(tmp_path, "break_reading(runner, ZeroDivisionError('the disk is gone'), 1)")
    )
    assert done.code == 1
    assert "ZeroDivisionError: the disk is gone" in done.output
    assert names(tmp_path / "run") == ["epoch_1.pth", "epoch_1_iter_17.pth"]  # a batch ahead was there already


@pytest.mark.slow
def test_a_process_that_hangs_is_noticed(tmp_path, run_processes):
    hang = write_accident(tmp_path, "__import__('signal').pause()")
    begin = time.monotonic()
    done = run_processes("train", *hang, "--cfg-options", "env_cfg.dist_cfg.timeout=4", ends_others=True)
    assert time.monotonic() - begin < 100  # PyTorch's own patience is 30 minutes
    assert done.code == 1
    assert "error: timed out after 4 s" in done.output


@pytest.mark.slow
def test_unreadable_images_of_all_processes_count(tmp_path, run_processes):
    done = run_processes(
        "train",
        *write_accident(tmp_path, "break_reading(runner, OSError('a broken image'), 1)", ranks="01"),
        *("--cfg-options", "train_dataloader.dataset.max_unreadable=1"),
    )
    assert done.code == 2
    assert "2 train images cannot be read, more than max_unreadable=1" in done.output
    assert names(tmp_path / "run")[-1].startswith("epoch_1_iter_")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of its parent")
@pytest.mark.slow
def test_when_the_launcher_is_killed_the_processes_save_and_end(tmp_path, train_with_accident):
    # It takes the system a moment to end the launcher, in which small steps would go on.
    code, output = train_with_accident("os.kill(os.getppid(), 9), __import__('time').sleep(2)")
    assert code == -signal.SIGKILL
    assert "stopped by SIGTERM" in output
    assert names(tmp_path / "run")[-1] == "epoch_1_iter_16.pth"


@pytest.mark.slow
def test_the_layer_that_went_wrong_on_another_process_is_named(tmp_path, run_processes):
    wrong = "runner.model.module.backbone.blocks[0].compress.register_forward_hook(lambda m, x, y: y * float('nan'))"
    options = ("--cfg-options", "optim_wrapper.max_skipped_steps=2")
    done = run_processes("train", *write_accident(tmp_path, wrong), *options)
    assert done.code == 2
    assert "on process 1 the output of backbone.blocks.0.compress is the first that is not finite" in done.output


@pytest.mark.slow
def test_another_number_of_processes_is_said(tmp_path, debug_checkpoint):
    checkpoint = read_checkpoint(debug_checkpoint)
    checkpoint["meta"]["processes"] = 4
    torch.save(checkpoint, tmp_path / "epoch_1.pth")
    build(tmp_path, ema_momentum=None, train_cfg__max_epochs=2).train()
    assert "was trained on 4 processes and resumes on 1" in log_of(tmp_path)


@pytest.mark.parametrize("background", [True, False])
def test_a_run_without_its_last_checkpoint_is_no_success(tmp_path, monkeypatch, background):
    def fail(contents, path):
        if path.name == "epoch_1.pth":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_checkpoint(contents, path)

    monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", fail)
    options = {
        "default_hooks__checkpoint__background": background,
        "default_hooks__checkpoint__save_best": None,
        "train_cfg__max_epochs": 1,
    }
    with pytest.raises(
        RunStoppedError, match=r"the run's last checkpoint epoch_1.pth could not be written \(.*No space left"
    ):
        build(tmp_path, **options).train()
    assert result_of(tmp_path)["finished"] is False


@pytest.mark.slow
def test_a_run_whose_checkpoint_lost_its_score_is_finished_by_a_resume(tmp_path, monkeypatch):
    full_disk(monkeypatch, {3})  # epoch 1 and its best are written, epoch 1 with the score is not
    with pytest.raises(RunStoppedError, match=r"the run's last checkpoint epoch_1.pth could not be written"):
        build(tmp_path, train_cfg__max_epochs=1).train()
    monkeypatch.undo()
    build(tmp_path, train_cfg__max_epochs=1).train()
    assert result_of(tmp_path)["finished"] is True
