"""What the tests of failing runs share."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def recorded(tmp_path):
    """Run a shell script with a Python that records its arguments and environment, on a machine without GPUs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nnotes = [sys.argv[1:], dict(os.environ)]\n"
        "sys.exit(print(0)) if sys.argv[1] == '-c' else json.dump(notes, open(os.environ['NOTES'], 'w'))\n"
    )
    (tmp_path / "bin" / "python").chmod(0o755)

    def run(script: str, *args: str, **env: str) -> tuple[list[str], dict[str, str]]:
        env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"), **env}
        command = ["bash", str(ROOT / "tools" / script), *args]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "notes").read_text())

    return run
