"""``crate-mm``: every tool by both names, and what is no command."""

import importlib
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from crate_mm import __version__ as version
from crate_mm.__main__ import COMMANDS, GROUPS, main
from crate_mm.cli.completion import parser_of
from crate_mm.moved import FORMER_NAMES, MOVED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def crate_mm(monkeypatch, capsys):
    """Run ``crate-mm`` in this process, and return its exit code, output and errors."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["crate-mm", *args])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_every_tool_has_both_names():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"torchrun"}
    assert tools == set(COMMANDS)
    for name in COMMANDS:
        command = importlib.import_module(f"crate_mm.cli.{name}")
        assert callable(command.main)
        assert f"python tools/{name}.py" in command.__doc__
        assert f"from crate_mm.cli.{name} import main" in (ROOT / "tools" / f"{name}.py").read_text()


def test_help_lists_the_commands(crate_mm):
    code, text, _ = crate_mm("--help")
    assert code == 0
    for title, commands in GROUPS.items():
        assert f"\n\n{title}\n" in text
        example = shlex.split(title.partition(": ")[2])
        assert example[0] == "crate-mm"
        assert parser_of(example[1].replace("-", "_")).parse_args(example[2:])
        assert all(f"\n  {name.replace('_', '-')} " in text for name in commands)
    assert crate_mm() == (2, text, "")


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "crate_mm", "--version"], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"crate-mm {version}\n"


def test_a_command_has_its_own_help(crate_mm):
    code, text, _ = crate_mm("get_flops", "--help")
    assert code == 0
    assert text.startswith("usage: crate-mm get-flops")
    assert "\ncrate-mm get-flops crate_base_in1k\n" in text  # without a clone's paths


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trian", "no command 'trian': did you mean train?"),
        ("printconfig", "no command 'printconfig': did you mean print-config?"),
        ("--verison", "no option '--verison': did you mean --version?"),
    ],
)
def test_what_is_no_command_gets_a_sentence(crate_mm, word, sentence):
    assert crate_mm(word) == (2, "", f"error: crate-mm has {sentence}\n")


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
