"""Public names: seen by ``dir``, completion and type checkers, and imported only when they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crate_mm

ROOT = Path(__file__).resolve().parents[1]
USES = ROOT / "tests" / "use_public_names.py"


def imported(text: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and not node.level]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names if "crate_mm" in node.module}


def test_dir_is_the_public_names():
    names = {name for name in dir(crate_mm) if not name.startswith("__")}
    assert names == set(crate_mm.__all__)
    assert all(getattr(crate_mm, name).__module__.startswith("crate_mm.") for name in names)
    with pytest.raises(AttributeError, match="module 'crate_mm' has no attribute 'get_modle'"):
        crate_mm.get_modle  # noqa: B018


def test_importing_the_package_does_not_load_pytorch():
    code = "import sys, crate_mm; dir(crate_mm); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout == "False\n", done.stderr


def test_every_name_of_the_readmes_is_in_the_file_that_mypy_checks():
    own = {f"crate_mm.{name}" for name in crate_mm.__all__}
    for readme in ROOT.rglob("*.md"):
        if ".venv" not in readme.parts:
            blocks = readme.read_text().split("```python\n")[1:]
            own |= {name for block in blocks for name in imported(block.partition("```")[0])}
    assert len(own) > 30
    assert own <= imported(USES.read_text())


@pytest.mark.slow
def test_mypy_knows_the_types_of_public_names(tmp_path):
    """In one run the file of all uses, which is right, and one whose mistake is found."""
    mypy = pytest.importorskip("mypy.api")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import crate_mm\ncrate_mm.get_modle\nreveal_type(crate_mm.list_models())\n")
    text, _, code = mypy.run(["--config-file", str(ROOT / "pyproject.toml"), str(USES), str(wrong)])
    assert code == 1, text
    (error,) = [line for line in text.splitlines() if ": error: " in line]
    assert "wrong.py:2: " in error
    assert 'Module has no attribute "get_modle"' in error
    assert 'Revealed type is "list[str]"' in text
