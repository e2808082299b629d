"""tools/launch.sh and tools/torchrun.py, with scripts that say what reaches them and end as they are told to.

What training does when a process of it ends is in test_interruptions.py, and the whole in ../cli/test_launchers.py.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from crate_mm.cli.options import IN_USE
from crate_mm.engine.safety.signals import EXIT_INTERRUPTED, EXIT_PREEMPTED
from tests.conftest import ROOT, free_port, start

RANK = """
import os, signal, sys, time
folder, what = sys.argv[1:3]
mine = os.environ["RANK"] == "1"
with open(f"{folder}/started", "a") as file:
    file.write(os.environ["RANK"] + "\\n")
both = 2 * int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 2
while len(open(f"{folder}/started").read().split()) < both:  # the other may start later than this one ends
    time.sleep(0.01)
"""
ENDS = {
    "killed": "os.kill(os.getpid(), 9) if mine else time.sleep(60)",
    "failed": "sys.exit('Traceback: the cat sat on the keyboard') if mine else time.sleep(60)",
    "asked to stop": f"sys.exit({EXIT_PREEMPTED}) if mine else time.sleep(60)",
    "cannot go on": "sys.exit(2)",
    "fails once": "sys.exit(1 if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' else 0)",
    "saves": f"""
codes = {{signal.SIGTERM: {EXIT_PREEMPTED}, signal.SIGUSR1: {EXIT_PREEMPTED}, signal.SIGINT: {EXIT_INTERRUPTED}}}
for number, code in codes.items():
    signal.signal(number, lambda *_, code=code: (time.sleep(0.3), os._exit(code)))
open(f"{{folder}}/ready{{mine}}", "w").close()
time.sleep(60)
""",
}

# One node: the loopback address and a static rendezvous, which reads no pickles; port 0 is a free one.
ALONE = ("--nnodes", "1", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", "0")


def arguments(tmp_path: Path, how: str, restarts: int) -> tuple:
    (tmp_path / "rank.py").write_text(RANK + ENDS[how])
    meeting = (*ALONE, "--max-restarts", restarts, "--nproc-per-node", 2)
    return *meeting, tmp_path / "rank.py", tmp_path, how


@pytest.mark.parametrize(
    ("how", "restarts", "code", "last", "starts"),
    [
        ("killed", 1, 1, "error: process 1 was killed by SIGKILL", 4),
        ("failed", 0, 1, "Traceback: the cat sat on the keyboard", 2),
        ("asked to stop", 2, EXIT_PREEMPTED, None, 2),
        ("cannot go on", 2, 2, None, 2),
        ("fails once", 1, 0, None, 4),
    ],
)
@pytest.mark.slow
def test_the_end_of_a_process_is_that_of_all(tmp_path, run_tool, how, restarts, code, last, starts):
    """A process that is killed is named, one that was asked to stop or that cannot go on is not started again."""
    done = run_tool("torchrun", *arguments(tmp_path, how, restarts), OMP_NUM_THREADS="1")
    assert done.code == code, done.output
    said = [line for line in done.output.splitlines() if line.startswith(("error", "Traceback"))]
    assert [line[: len(last)] for line in said] == [last] if last else said == []
    assert len((tmp_path / "started").read_text().split()) == starts


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, EXIT_PREEMPTED), (signal.SIGINT, EXIT_INTERRUPTED)],
)
@pytest.mark.slow
def test_a_signal_to_the_launcher_is_one_to_all(tmp_path, recorded, number, code):
    _, environment = recorded("dist_train.sh", "debug", "2")
    script = ROOT / "tools" / "torchrun.py"
    launcher = start(script, arguments(tmp_path, "saves", 1), tmp_path / "log", ROOT, environment)
    until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    os.kill(launcher.pid, number)
    launcher.join(60)
    launcher.kill()
    assert launcher.exitcode == code, (tmp_path / "log").read_text()
    assert len((tmp_path / "started").read_text().split()) == 2


@pytest.mark.slow
def test_a_config_may_have_any_name(tmp_path, recorded, run_tool):
    """Through the shell, through the launcher, and through the tool."""
    name = "a b'\"$(touch pwned);&%s{{x}}\x1b.py"
    folder = tmp_path / name.removesuffix(".py")
    folder.mkdir()
    config, work_dir = str(folder / name), str(folder / "w")
    Path(config).write_text(f'_base_ = "{ROOT}/configs/debug.py"\ntrain_cfg = dict(max_epochs=1)\n')
    arguments, _ = recorded("dist_train.sh", config, "1", "--work-dir", work_dir)
    launcher, *options, script, given, _, _, _, where = arguments
    assert [launcher, script] == [str(ROOT / "tools" / name) for name in ("torchrun.py", "train.py")]
    assert (given, where) == (config, work_dir)
    assert options == [*ALONE, "--max-restarts", "0", "--nproc-per-node", "1"]

    (tmp_path / "seen.py").write_text("import sys; open(sys.argv[1], 'w').write(sys.argv[2])")
    done = run_tool("torchrun", *options, tmp_path / "seen.py", tmp_path / "seen", config, OMP_NUM_THREADS="1")
    assert done.code == 0, done.output
    assert (tmp_path / "seen").read_text() == config

    done = run_tool("train", config, "--work-dir", work_dir, cwd=tmp_path)
    assert done.code == 0, done.output
    assert (folder / "w/epoch_1.pth").exists()
    assert not list(tmp_path.rglob("pwned"))


def test_dist_test_starts_test_on_each_process(recorded):
    arguments, _ = recorded("dist_test.sh", "debug", "x.pth", "4", "--json", "y.json")
    launcher, test = (str(ROOT / "tools" / name) for name in ("torchrun.py", "test.py"))
    expected = [launcher, *ALONE, "--max-restarts", "0", "--nproc-per-node", "4"]
    assert arguments == [*expected, test, "debug", "x.pth", "--launcher", "pytorch", "--json", "y.json"]


@pytest.mark.slow
def test_processes_start_again_until_a_node_that_is_cut_off_lets_the_folder_go(tmp_path, run_tool):
    """With nodes that come and go; else the job ends as for all bad input."""
    tries = f"sys.exit({IN_USE} if len(open(sys.argv[1]).read()) < 3 else 0)"
    (tmp_path / "rank.py").write_text(f"import sys\nwith open(sys.argv[1], 'a') as file:\n    file.write('.')\n{tries}")
    started = tmp_path / "started"
    port = free_port()
    meeting = ("--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "x")
    several = (*meeting, "--rdzv-conf", "last_call_timeout=1", "--max-restarts", "0", "--nproc-per-node", "1")
    for nodes, code, starts in ((several, 0, 3), ((*ALONE, "--max-restarts", "2", "--nproc-per-node", "1"), 2, 1)):
        started.unlink(missing_ok=True)
        done = run_tool("torchrun", *nodes, tmp_path / "rank.py", started, OMP_NUM_THREADS="1")
        assert (done.code, len(started.read_text())) == (code, starts), done.output


def meets(tmp_path: Path, name: str, port: int, nodes: str, **env: str):
    """Start a launcher of nodes that come and go, whose processes wait for a file."""
    (tmp_path / "rank.py").write_text(
        "import os, sys, time\nopen(f'{sys.argv[1]}/{os.getpid()}.runs', 'w').close()\n"
        "while not os.path.exists(f'{sys.argv[1]}/end'):\n    time.sleep(0.05)\n"
    )
    meeting = ("--nnodes", nodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "x")
    args = (*meeting, "--nproc-per-node", "1", tmp_path / "rank.py", tmp_path)
    env = dict(OMP_NUM_THREADS="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", **env)
    return start(ROOT / "tools" / "torchrun.py", args, tmp_path / f"{name}.log", ROOT, env)


@pytest.mark.slow
def test_a_node_too_many_waits_and_is_not_needed(tmp_path):
    port = free_port()
    nodes = [meets(tmp_path, name, port, "1:2") for name in ("first", "second")]
    until(lambda: len(list(tmp_path.glob("*.runs"))) == 2)
    nodes.append(meets(tmp_path, "third", port, "1:2"))
    time.sleep(2)  # for it to join, were there a place
    assert all(node.is_alive() for node in nodes)
    assert len(list(tmp_path.glob("*.runs"))) == 2
    (tmp_path / "end").touch()
    for node in nodes:
        node.join(60)
        node.kill()
    assert [node.exitcode for node in nodes] == [0, 0, 1]
    log = (tmp_path / "third.log").read_text()
    # By what it comes to see first: that the job has ended, or that the node where all meet has.
    said = (
        "error: the job has ended: training is done",
        "error: the rendezvous node MASTER_ADDR does not",
    )
    assert log.splitlines()[-1].startswith(said)
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("meets_at", "said"),
    [
        ("itself", "error: timed out waiting for the minimum of NNODES nodes"),
        ("nobody", "error: the rendezvous node MASTER_ADDR does not answer at PORT"),
    ],
)
@pytest.mark.slow
def test_nodes_that_do_not_meet_end_in_a_sentence(tmp_path, meets_at, said):
    conf = dict(itself="join_timeout=2", nobody="is_host=0,read_timeout=2")[meets_at]
    node = meets(tmp_path, "node", free_port(), "2:3", PET_RDZV_CONF=conf)
    node.join(60)
    node.kill()
    log = (tmp_path / "node.log").read_text()
    assert (node.exitcode, log.splitlines()[-1][: len(said)], "Traceback" in log) == (1, said, False), log


def test_nodes_that_come_and_go_meet_at_an_address(recorded):
    told = dict(MASTER_ADDR="node0", NNODES="1:04", PORT="1234")
    arguments, environment = recorded("dist_train.sh", "debug", "2", "--resume", "--amp", **told)
    meeting = ["--nnodes", "1:4", "--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:1234", "--rdzv-id", "port1234"]
    assert arguments[1:] == [
        *meeting,
        *("--max-restarts", "3", "--nproc-per-node", "2"),
        *(str(ROOT / "tools" / "train.py"), "debug", "--launcher", "pytorch", "--resume", "--amp"),
    ]
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    arguments, _ = recorded("dist_train.sh", "debug", "2", "--resume", **told, RUN_ID="a.B-1_", MAX_RESTARTS="0")
    assert (arguments[8], arguments[10]) == ("a.B-1_", "0")
    arguments, _ = recorded("dist_train.sh", "debug", "2", "--resume", **told, SLURM_JOB_ID="77")
    assert arguments[8] == "77"


NEEDS_RESUME = "error: NNODES=1:2 needs --resume, without a checkpoint's name: "
NODES = dict(NNODES="1:2", MASTER_ADDR="node0")


@pytest.mark.parametrize(
    ("script", "args", "env", "said"),
    [
        ("dist_train.sh", ["debug", "1"], NODES, NEEDS_RESUME),
        ("dist_train.sh", ["debug", "1", "--resume", "x.pth", "--amp"], NODES, NEEDS_RESUME),
        ("dist_train.sh", ["debug", "1", "--resume=x.pth"], NODES, NEEDS_RESUME),
        ("dist_train.sh", ["debug", "1", "--resume"], {"NNODES": "1:2"}, "error: NNODES=1:2 needs MASTER_ADDR "),
        (
            "dist_train.sh",
            ["debug", "1", "--resume"],
            {**NODES, "NODE_RANK": "1"},
            "error: NNODES=1:2 numbers the nodes",
        ),
        ("dist_test.sh", ["debug", "x.pth", "1"], NODES, "error: NNODES=1:2 is for training: "),
    ],
)
def test_nodes_that_come_and_go_need(tmp_path, script, args, env, said):
    command = ["bash", str(ROOT / "tools" / script), *args]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr[: len(said)], done.stderr.count("\n")) == (2, said, 1)


@pytest.mark.parametrize("resume", [["--resume", "--amp"], ["--amp", "--resume"], ["--resume"]])
def test_resume_may_stand_anywhere(recorded, resume):
    arguments, _ = recorded("dist_train.sh", "debug", "1", *resume, **NODES)
    assert arguments[-len(resume) :] == resume
