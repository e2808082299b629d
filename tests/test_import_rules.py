"""Who may import whom, read off the sources: the rules that keep the house in order."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "crate_mm"
FILES = sorted(PACKAGE.rglob("*.py"))

# Module prefix (below crate_mm) -> third-party packages it may import, or None for any.
THIRD_PARTY = {
    "registry": {"mmengine"},
    "untrusted": set(),
    "models.layers": {"torch", "einops"},
    "analysis.measures": {"torch", "einops"},
}
# Module prefix -> parts of crate_mm that it may not import.
FORBIDDEN = {
    "registry": {"models", "datasets", "evaluation", "engine", "analysis", "conversion", "apis"},
    "models": {"datasets", "evaluation", "engine", "analysis", "conversion", "apis"},
    "models.layers": {"registry", *(f"models.{m}" for m in ("backbones", "heads", "classifier", "preprocessor"))},
    "models.backbones": {"models.heads", "models.classifier", "models.preprocessor"},
    "analysis.measures": {"registry", "analysis.capture", "analysis.complexity", "analysis.plots"},
    "datasets": {"models", "evaluation", "engine", "analysis", "conversion", "apis"},
    "evaluation": {"models", "datasets", "engine", "analysis", "conversion", "apis"},
    "engine": {
        "models",
        "datasets",
        "evaluation",
        *(f"analysis.{m}" for m in ("capture", "measures", "plots")),
        "apis",
    },
    "analysis": {"models", "datasets", "evaluation", "engine", "conversion", "apis"},
    "conversion": {"datasets", "evaluation", "engine", "analysis", "apis"},
    "": {"tools", "configs", "tests"},
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".")


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, relative imports resolved."""
    here = ("crate_mm." + module_name(path)).rstrip(".").split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, node.module] if node.module else base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def violations(name: str, imported: set[str]) -> list[str]:
    found = []
    for prefix, parts in FORBIDDEN.items():
        if prefix == "" or name == prefix or name.startswith(prefix + "."):
            for part in parts:
                for root in (f"crate_mm.{part}", part):
                    found += [i for i in imported if i == root or i.startswith(root + ".")]
    for prefix, allowed in THIRD_PARTY.items():
        if name == prefix or name.startswith(prefix + "."):
            outside = {i.split(".")[0] for i in imported} - sys.stdlib_module_names - {"crate_mm"}
            found += sorted(outside - allowed)
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_import_rules(path):
    assert violations(module_name(path), imports(path)) == []


def test_the_rules_would_notice():
    assert violations("models.heads", {"crate_mm.datasets.sources"}) == ["crate_mm.datasets.sources"]
    assert violations("models.layers.ista", {"mmengine.model", "torch"}) == ["mmengine"]
    assert violations("models.layers.ista", {"crate_mm.models.tasks.heads"}) == ["crate_mm.models.tasks.heads"]
    assert violations("models.backbones.crate", {"crate_mm.models.tasks.classifier"}) == [
        "crate_mm.models.tasks.classifier"
    ]
    assert violations("engine.runner", {"crate_mm.evaluation"}) == ["crate_mm.evaluation"]
    assert violations("apis", {"tests.conftest"}) == ["tests.conftest"]
    classifier = imports(PACKAGE / "models" / "classifier.py")
    assert "crate_mm.registry.MODELS" in classifier
    assert "mmengine.model.BaseModel" in classifier


def test_no_file_is_too_long_to_read():
    assert {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 400} == {}
