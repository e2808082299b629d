"""What the benchmarks do on a GPU alone."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.gpu
def test_a_profile_counts_each_kernel_once(tmp_path):
    """The GPU does one thing at a time here, so that its kernels take no longer than the step."""
    written = tmp_path / "profile.json"
    script = ROOT / "tools" / "benchmarks" / "train_step.py"
    size = ["--profile", "40", "--models", "crate_tiny", "--batch", "64", "--precisions", "bf16", "--no-compile"]
    subprocess.run([sys.executable, script, *size, "--json", written], check=True, timeout=100)
    step, kernels, host, *each = json.loads(written.read_text())["rows"]
    assert (step["what"], kernels["what"], host["what"]) == ("the step", "all kernels", "the host")
    assert 0.1 < kernels["share"] < 1.1
    assert sum(row["ms_a_step"] for row in each) <= 1.001 * kernels["ms_a_step"]
    assert host["ms_a_step"] > 0
