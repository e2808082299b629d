"""``crate-mm``: every tool by both names, and what is no command."""

import importlib
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from crate_mm import __version__ as version
from crate_mm.__main__ import COMMANDS, GROUPS
from crate_mm.cli.completion import parser_of
from crate_mm.moved import FORMER_NAMES, MOVED

ROOT = Path(__file__).resolve().parents[2]


def crate_mm(*args):
    return subprocess.run([sys.executable, "-m", "crate_mm", *args], capture_output=True, text=True, timeout=120)


def test_every_tool_has_both_names():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"torchrun"}
    assert tools == set(COMMANDS)
    for name in COMMANDS:
        command = importlib.import_module(f"crate_mm.cli.{name}")
        assert callable(command.main)
        assert f"python tools/{name}.py" in command.__doc__
        assert f"from crate_mm.cli.{name} import main" in (ROOT / "tools" / f"{name}.py").read_text()


def test_help_lists_the_commands():
    done = crate_mm("--help")
    assert done.returncode == 0
    for title, commands in GROUPS.items():
        assert f"\n\n{title}\n" in done.stdout
        example = shlex.split(title.partition(": ")[2])
        assert example[0] == "crate-mm"
        assert parser_of(example[1].replace("-", "_")).parse_args(example[2:])
        assert all(f"\n  {name.replace('_', '-')} " in done.stdout for name in commands)
    assert crate_mm().returncode == 2


def test_version():
    assert crate_mm("--version").stdout == f"crate-mm {version}\n"


def test_a_command_has_its_own_help(tmp_path, run_tool):
    (tmp_path / "run.py").write_text("import runpy; runpy.run_module('crate_mm', run_name='__main__')")
    done = run_tool(str(tmp_path / "run"), "get_flops", "--help")
    assert done.code == 0
    assert done.output.startswith("usage: crate-mm get-flops")
    assert "\ncrate-mm get-flops crate_base_in1k\n" in done.output  # without a clone's paths


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trian", "no command 'trian': did you mean train?"),
        ("printconfig", "no command 'printconfig': did you mean print-config?"),
        ("--verison", "no option '--verison': did you mean --version?"),
    ],
)
def test_what_is_no_command_gets_a_sentence(word, sentence):
    done = crate_mm(word)
    assert (done.returncode, done.stderr) == (2, f"error: crate-mm has {sentence}\n")


@pytest.mark.parametrize("name", MOVED)
def test_a_former_module_is_found_under_its_former_name(name):
    sys.modules.pop(f"crate_mm.{name}", None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module = importlib.import_module(f"crate_mm.{name}")
    assert module is importlib.import_module(f"crate_mm.{MOVED[name]}")
    assert any(f"crate_mm.{name} was renamed to crate_mm.{MOVED[name]}" in str(w.message) for w in told)
    for former, renamed in FORMER_NAMES.get(name, {}).items():
        assert getattr(module, former) is getattr(module, renamed)


@pytest.mark.parametrize(
    ("set_by_user", "expected"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_leave_the_cores_to_others(set_by_user, expected):
    """Before PyTorch is loaded, which reads it once."""
    code = "import os, sys, crate_mm.cli; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **set_by_user})
    assert done.stdout == f"False {expected}\n"
