"""Slurm: what its scripts hand it, a job that queues itself again, and, where there is a Slurm, all of it."""

import os
import shutil
import signal
import subprocess
import time
from multiprocessing import connection

import pytest

from crate_mm.engine.safety.signals import EXIT_PREEMPTED
from tests.conftest import ROOT, by_pytorch, free_port, start
from tests.faults.test_interruptions import names, write_accident
from tests.faults.test_nodes import CONFIG, HOOK, STEPS, images, notes_of
from tests.training import AUGMENT

REQUEUE = ROOT / "tools" / "slurm_requeue.sbatch"


@pytest.mark.parametrize(("code", "requeued"), [(EXIT_PREEMPTED, "requeue 77\n"), (0, ""), (1, ""), (130, "")])
def test_a_job_that_saved_queues_itself_again(tmp_path, code, requeued):
    """Slurm is not here: what the job asks of it is, and what its processes end with."""
    (tmp_path / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"$RECORD.srun"\nexit {code}\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >>"$RECORD.scontrol"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    record = tmp_path / "record"
    record.with_suffix(".scontrol").touch()
    env = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", RECORD=str(record), SLURM_JOB_ID="77")
    done = subprocess.run(["bash", REQUEUE, "a config.py", "--amp"], env={**os.environ, **env}, capture_output=True)
    assert done.returncode == code
    assert record.with_suffix(".scontrol").read_text() == requeued
    args = record.with_suffix(".srun").read_text().splitlines()
    assert args[-6:] == ["tools/train.py", "a config.py", "--amp", "--launcher", "slurm", "--resume"]


def test_the_job_asks_for_its_signal_and_its_log():
    said = [line.split(maxsplit=1)[1] for line in REQUEUE.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=USR1@120", "--requeue", "--open-mode=append"} <= set(said)


@pytest.mark.slow
def test_all_processes_end_as_preempted_though_the_first_end_ends_the_others(tmp_path):
    """As srun's --kill-on-bad-exit does: the job sees the greatest of the exit codes, and 143 would say nothing."""
    port, log = free_port(), tmp_path / "log"
    options = write_accident(tmp_path, "os.kill(os.getpid(), __import__('signal').SIGUSR1)")
    args = (*options, "--launcher", "pytorch")
    processes = [start(ROOT / "tools" / "train.py", args, log, ROOT, by_pytorch(rank, 2, port)) for rank in (0, 1)]
    connection.wait([process.sentinel for process in processes], 100)
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [EXIT_PREEMPTED, EXIT_PREEMPTED], log.read_text()
    assert log.read_text().count("stopped by SIGUSR1") == 1
    assert names(tmp_path / "run")[-1] == "epoch_1_iter_16.pth"


def runs_slurm() -> bool:
    return bool(shutil.which("sbatch")) and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.mark.skipif(not runs_slurm(), reason="there is no Slurm here to submit a job to")
@pytest.mark.slow
def test_a_job_is_stopped_and_goes_on_by_itself(tmp_path):
    """With the Slurm of this machine: two tasks, asked to save, queued again by the job, and as if undisturbed."""
    (tmp_path / "notes.py").write_text(HOOK)
    (tmp_path / "config.py").write_text(CONFIG.format(root=ROOT, augment=AUGMENT))
    options = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=none", "--time=20", "--parsable"]
    options += ["--signal=USR1@60", f"--output={tmp_path / 'log'}"]
    command = ["sbatch", *options, REQUEUE, tmp_path / "config.py", "--work-dir", tmp_path / "run"]
    env = dict(PYTHONPATH=f"{tmp_path}:{ROOT}", NOTES=str(tmp_path / "notes"), OMP_NUM_THREADS="1")
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    job = done.stdout.strip()

    def until(condition, seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                subprocess.run(["scancel", job])
                pytest.fail((tmp_path / "log").read_text() if (tmp_path / "log").exists() else "it did not start")
            # A job that was queued again may begin after two minutes.
            subprocess.run(["scontrol", "update", f"job={job}", "StartTime=now"], capture_output=True)
            time.sleep(1)

    until(lambda: len(notes_of(tmp_path)) > 6)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)  # as Slurm itself does before the job's end
    until(lambda: (tmp_path / "run" / "epoch_4.pth").exists())
    until(lambda: not subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True).stdout.strip())
    log = (tmp_path / "log").read_text()
    assert log.count(f"requeued job {job}") == 1
    assert log.count("effective batch 32 = 2 processes x 16") == 2
    taken = images(notes_of(tmp_path))
    assert {step: len(sums) for step, sums in taken.items()} == dict.fromkeys(range(STEPS), 1)
    assert len(notes_of(tmp_path)) == 2 * STEPS  # none twice: nothing was lost
