"""Commands in an environment that is not made for them."""

import io
import os
import subprocess
import sys
import zipfile

import pytest

from crate_mm.cli.options import Parser
from tests.conftest import ROOT


def python(code: str, cwd=ROOT, path=ROOT, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path), **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.mark.parametrize(
    ("set_by_user", "spins"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_the_environment_is_mended_before_a_library_reads_it(set_by_user, spins, tmp_path, monkeypatch):
    """A back end of a notebook, a folder whose path is too long for sockets, and threads that wait on shared cores.

    MMEngine's import ends where there is no home folder; PyTorch reads once how its threads wait.
    """
    long = tmp_path / ("a" * 80)
    long.mkdir()
    code = """
import os, sys, crate_mm.cli
print(*{"mmengine", "torch", "matplotlib", "yapf"} & {name.partition(".")[0] for name in sys.modules})
print(os.environ.get("GOMP_SPINCOUNT"), os.environ["MPLBACKEND"])
import multiprocessing.connection
multiprocessing.connection.Listener(family="AF_UNIX")
"""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    ended = python(code, MPLBACKEND="module://nowhere.backend_inline", TMPDIR=str(long), **set_by_user)
    assert (ended.stdout, ended.returncode) == (f"\n{spins} agg\n", 0), ended.stderr


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_or_a_home_folder():
    code = """
import os, pwd, crate_mm.cli
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
os.setuid(54321)
print({name: value for name, (value, _) in crate_mm.cli.replacements().items()})
"""
    ended = python(code, MPLBACKEND="agg", TMPDIR="/tmp")
    assert ended.stdout == "{'HOME': '/', 'USER': 'uid54321'}\n", ended.stderr


def test_a_console_that_is_not_utf8_gets_every_line(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    Parser("").parse_args([])
    print("caf\u00e9\u732b", flush=True)
    assert console.buffer.getvalue() == b"caf\\xe9\\u732b\n"


def test_an_archive_is_refused_in_a_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "crate_mm.whl", "w") as archive:
        archive.write(ROOT / "crate_mm" / "__init__.py", "crate_mm/__init__.py")
    ended = python("import crate_mm", cwd=tmp_path, path=tmp_path / "crate_mm.whl")
    assert "ImportError: crate_mm is in an archive, " in ended.stderr
    assert "install it with pip, or unpack the archive" in ended.stderr
