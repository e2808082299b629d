"""The shell scripts: their help, and arguments that are none."""

import subprocess
from pathlib import Path

import pytest

from crate_mm.config import find_config
from crate_mm.models import ImageClassifier

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    "quickstart.sh",
    "dist_train.sh",
    "dist_test.sh",
    "slurm_train.sh",
    "slurm_test.sh",
    "slurm_requeue.sbatch",
    "run_tests.sh",
    "setup_env.sh",
    "launch.sh",
    "slurm.sh",
]


def run(script, *args, cwd):
    return subprocess.run(["bash", ROOT / "tools" / script, *args], cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_helps_and_does_nothing(script, option, tmp_path):
    done = run(script, option, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"tools/{script}" in done.stdout
    assert "#" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_option_in_the_place_of_the_folder(tmp_path):
    done = run("quickstart.sh", "--amp", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected the work directory first, got '--amp'" in done.stderr


def test_a_config_says_its_true_size():
    from crate_mm.engine import load_config

    cfg = load_config("debug")
    model = ImageClassifier(**{key: value for key, value in cfg.model.items() if key != "type"})
    parameters = sum(p.numel() for p in model.parameters())
    assert f"A CRATE of {parameters:,} parameters" in find_config("debug").read_text()
