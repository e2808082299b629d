"""The scripts that start training on several processes, nodes, or from nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crate_mm.engine import read_checkpoint
from crate_mm.engine.parallel.launch import _slurm_environment
from tests.conftest import ROOT, free_port, start


@pytest.mark.slow
def test_dist_train_on_one_node_and_on_two(tmp_path, recorded):
    """Real processes on one node; on two the launchers and what they start are forked off."""
    train = ["configs/debug.py", "--cfg-options", "train_cfg.max_epochs=1", "--work-dir"]
    command = ["bash", str(ROOT / "tools" / "dist_train.sh"), train[0], "2", *train[1:], str(tmp_path / "single")]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "effective batch 128 = 2 processes x 64" in done.stdout

    nodes, port = [], str(free_port())
    for rank in ("0", "1"):
        told = dict(NNODES="2", NODE_RANK=rank, MASTER_ADDR="127.0.0.1", PORT=port)
        (_, *arguments), env = recorded("dist_train.sh", train[0], "1", *train[1:], str(tmp_path / "nodes"), **told)
        nodes.append(start(ROOT / "tools" / "torchrun.py", arguments, tmp_path / f"node{rank}.out", ROOT, env))
    for node in nodes:
        node.join(120)
    output = (tmp_path / "node0.out").read_text()
    assert [node.exitcode for node in nodes] == [0, 0], output
    assert "effective batch 128 = 2 processes x 64" in output
    single, nodes = (read_checkpoint(tmp_path / name / "epoch_1.pth")["state_dict"] for name in ("single", "nodes"))
    assert all(torch.equal(single[key], nodes[key]) for key in single)


STAMP = Path(sys.prefix) / ".crate_mm-installed-test"


@pytest.mark.skipif(
    not STAMP.exists() or f"{ROOT}:" not in STAMP.read_text(),
    reason="tools/run_tests.sh set up no environment: quickstart.sh would install one",
)
@pytest.mark.slow
def test_quickstart(tmp_path):
    env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    command = ["bash", ROOT / "tools" / "quickstart.sh", tmp_path / "run", "--cfg-options", "train_cfg.max_epochs=1"]
    command += ["train_dataloader.dataset.source.split=test", "global_batch_size=225"]  # two steps
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert f"{figures['top1']:.2f} % of 450 test images correct" in done.stdout
    assert "parameters: 0.12 M" in done.stdout
    assert f"Open in a browser:\n  {tmp_path / 'run' / 'report.html'}\n" in done.stdout
    assert "random" in (tmp_path / "run" / "report.html").read_text()
    assert "Installing" not in done.stdout


def by_slurm(rank: int, tasks: int, port: int) -> dict[str, str]:
    """What srun tells a task, and where they meet."""
    told = {"NTASKS": tasks, "PROCID": rank, "LOCALID": rank, "NODELIST": "localhost"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "PORT": str(port)}
    return {**{f"SLURM_{name}": str(value) for name, value in told.items()}, **meeting}


@pytest.mark.slow
def test_slurm_variables_start_processes(tmp_path, run_processes):
    """srun is not here: its variables are, and what slurm_train.sh hands it."""
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$RECORD"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(tmp_path / "args"), "GPUS": "16"}
    subprocess.run([ROOT / "tools" / "slurm_train.sh", "gpu", "job", "configs/debug.py", "--amp"], env=env, check=True)
    args = (tmp_path / "args").read_text().split()
    assert {"--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--partition=gpu", "--job-name=job"} <= set(args)
    assert args[-4:] == ["configs/debug.py", "--launcher", "slurm", "--amp"]

    options = ("--work-dir", tmp_path / "run", "--cfg-options", "train_cfg.max_epochs=1")
    done = run_processes("train", "debug", *options, launcher="slurm", variables=by_slurm)
    assert done.code == 0, done.output
    assert (tmp_path / "run" / "epoch_1.pth").exists()


def test_a_slurm_step_meets_at_its_own_first_host_and_its_jobs_port(tmp_path, monkeypatch):
    """scontrol is not here: what it is asked for is."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\nshift 2\nfor host in $(echo "$1" | tr , " "); do echo $host; done\n')
    (tmp_path / "scontrol").chmod(0o755)
    told = dict(NTASKS=2, PROCID=1, LOCALID=0, NODELIST="node1,node2,node3", STEP_NODELIST="node2,node3")
    set_for_tasks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
    for name in (*set_for_tasks, "PORT"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {**told, "JOB_ID": 1234567}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    _slurm_environment()
    assert [os.environ[name] for name in set_for_tasks] == ["1", "2", "0", "24567", "node2"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((ROOT / "tools" / "dist_train.sh",), "usage: "),
        ((ROOT / "tools" / "dist_train.sh", "debug", "many"), "GPUS must be a positive integer, got 'many'"),
        ((ROOT / "tools" / "dist_test.sh", "debug", "4"), "usage: "),
        ((ROOT / "tools" / "slurm_train.sh", "gpu"), "usage: "),
        (
            ("env", "NNODES=2", ROOT / "tools" / "dist_train.sh", "debug", "2"),
            "NNODES=2 needs NODE_RANK (0 to 1, one per node) and",
        ),
    ],
)
def test_the_launchers_say_how_they_are_used(args, message):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


def test_more_gpus_than_the_node_has(tmp_path):
    """A node with GPUs is not here: a python that counts 8 of them stands in for one."""
    (tmp_path / "python").write_text("#!/bin/sh\necho 8\n")
    (tmp_path / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(ROOT / "tools" / "dist_train.sh"), "c.py", "12"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "this node has 8 GPUs, fewer than 12. Use several nodes, each running NNODES=2 NODE_RANK=" in done.stderr
    assert done.stderr.rstrip().endswith("dist_train.sh c.py 6")
