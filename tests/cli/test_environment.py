"""Commands in an environment that is not made for them."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT


def python(code: str, cwd=ROOT, path=ROOT, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path), **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.mark.parametrize("backend", ["module://nowhere.backend_inline", "no_backend"])
@pytest.mark.slow
def test_a_back_end_that_is_not_there_ends_no_command(backend):
    code = "import crate_mm.cli, matplotlib.pyplot as plt; plt.figure(); print(plt.get_backend())"
    ended = python(code, MPLBACKEND=backend)
    assert ended.stdout == "agg\n", ended.stderr


def test_workers_have_sockets_in_whatever_folder_is_for_temporary_files(tmp_path):
    long = tmp_path / ("a" * 80)
    long.mkdir()
    code = "import crate_mm.cli, multiprocessing.connection as c; c.Listener(family='AF_UNIX'); print('listens')"
    ended = python(code, TMPDIR=str(long))
    assert ended.stdout == "listens\n", ended.stderr


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


@pytest.mark.slow
def test_a_console_that_is_not_utf8_gets_every_line():
    code = "from crate_mm.cli.options import Parser\nParser('').parse_args([])\nprint('caf\\u00e9\\u732b')"
    ended = python(code, PYTHONIOENCODING="ascii")
    assert ended.stdout == "caf\\xe9\\u732b\n", ended.stderr


def test_doctor_says_what_was_replaced(run_tool, tmp_path, monkeypatch):
    monkeypatch.setattr("crate_mm.cli.doctor.REPLACED", {"MPLBACKEND": ("agg", "the commands draw into files")})
    done = run_tool("doctor", cwd=tmp_path)
    assert "  note  MPLBACKEND          replaced by agg: the commands draw into files" in done.output.splitlines()


def test_an_archive_is_refused_in_a_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "crate_mm.whl", "w") as archive:
        archive.write(ROOT / "crate_mm" / "__init__.py", "crate_mm/__init__.py")
    ended = python("import crate_mm", cwd=tmp_path, path=tmp_path / "crate_mm.whl")
    assert "ImportError: crate_mm is in an archive, " in ended.stderr
    assert "install it with pip, or unpack the archive" in ended.stderr


def test_the_environment_is_mended_before_a_library_reads_it():
    """MMEngine's import ends where there is no home folder; PyTorch reads how its threads wait."""
    code = "import sys, crate_mm.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    assert not {"mmengine", "torch", "matplotlib", "yapf"} & set(python(code).stdout.split())
