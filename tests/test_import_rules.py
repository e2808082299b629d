"""Who may import whom, read off the sources and followed to the end: the rules that keep the house in order."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "crate_mm"
FILES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}
FILES[""] = FILES.pop("__init__")

# Third-party packages that a part may import, itself or by what it imports; of all others, any.
THIRD_PARTY = {
    "io.untrusted": set(),
    "registry": {"mmengine"},
    "io.log": {"mmengine"},
    "models.layers": {"torch", "einops"},
    "analysis.measures": {"torch", "einops"},
}
# From the top down: a part imports what stands in lower rows, and of its own row itself alone.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"templates"},  # files for users, which nothing imports
    {"hub", "timm", "testing"},
    {"extras"},  # nothing above but commands and entry points imports it, by name
    {"api"},
    {"inference"},
    {"engine"},
    {"analysis.hook"},
    {"analysis.figures"},
    {"analysis", "checkpoints"},
    {"models"},  # the package's face
    {"config", "models.tasks", "datasets", "evaluation"},
    {"models.families"},
    {"models.decoders"},
    {"models.backbone", "models.translate"},
    {"models.layers", "models.arch", "models.official", "datasets.base"},
    {"registry"},
    {"io.files", "io.log", "torch_private"},
    {"io", "io.untrusted"},
]
# Named in full: the contracts of a task, a backbone, a layer, official weights, and the data.
BESIDES = {
    "engine": {"models.tasks.base", "models.backbone", "models.layers", "datasets.base"},
    "analysis": {"models.tasks.base", "models.backbone", "models.layers"},
    "cli": {"models.tasks.base"},
    "checkpoints": {"models.tasks.base", "models.backbone", "models.layers", "models.official", "models.translate"},
}
# Reached through registries alone.
THROUGH_REGISTRIES = {"engine": {"models", "datasets", "evaluation"}, "checkpoints": {"models", "datasets"}}


def part_of(module: str) -> str:
    """The part that a module belongs to, by the longest name."""
    parts = sorted((p for row in FLOORS for p in row), key=len, reverse=True)
    return next((p for p in parts if module == p or module.startswith(f"{p}.")), "")


def floor_of(module: str) -> int:
    return next((n for n, row in enumerate(FLOORS) if part_of(module) in row), len(FLOORS))


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of everything that a file imports at any place, relative imports resolved."""
    path = FILES[module]
    here = f"crate_mm.{module}".rstrip(".").split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, node.module] if node.module else base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(found)


def own(names) -> set[str]:
    """The modules of ours among full names, each by its longest name that is a file."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "crate_mm":
            found.add(next(m for n in range(len(parts), 0, -1) if (m := ".".join(parts[1:n])) in FILES))
    return found


@cache
def reached(module: str) -> frozenset[str]:
    """All modules of ours that a module imports, itself or by others."""
    seen, left = {""}, [module]  # the package itself imports api, where that is asked for
    while left:
        for other in own(imports(left.pop())) - seen:
            seen.add(other)
            left.append(other)
    return frozenset(seen)


def violations(module: str, imported: set[str]) -> list[str]:
    part, found = part_of(module), []
    for other in own(imported) - {""}:
        besides = any(module.startswith(of) and other.startswith(tuple(what)) for of, what in BESIDES.items())
        if part_of(other) != part and not besides:
            hidden = THROUGH_REGISTRIES.get(module.partition(".")[0], set())
            if floor_of(other) <= floor_of(module) or other.partition(".")[0] in hidden:
                found.append(other)
    return sorted(found)


def test_a_part_imports_what_stands_below_it():
    assert {module: found for module in FILES if module and (found := violations(module, imports(module)))} == {}


@pytest.mark.parametrize("prefix", THIRD_PARTY)
def test_what_is_plain_stays_plain_to_the_end(prefix):
    """Also by what it imports, and what that imports."""
    for module in FILES:
        if module == prefix or module.startswith(f"{prefix}."):
            everything = {name for m in {module, *reached(module)} for name in imports(m)}
            outside = {name.partition(".")[0] for name in everything} - sys.stdlib_module_names - {"crate_mm"}
            assert outside <= THIRD_PARTY[prefix], module


def test_there_are_no_circles():
    assert [module for module in FILES if module and module in reached(module)] == []


# What has a contract is asked, and its attributes are not looked for. These files adapt objects of other libraries.
CONTRACTS = {"model", "task", "backbone", "layer", "block", "head", "family", "student", "teacher", "preprocessor"}
CONTRACTS |= {"dataset", "source", "sampler", "loader", "train_dataloader"}
ADAPTERS = {"datasets.base", "extras.interop.timm_backbone", "torch_private"}


def sniffed(tree: ast.AST) -> list[str]:
    """The calls of getattr and hasattr with a literal name on something that has a contract."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1]
    calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("getattr", "hasattr")]
    calls = [call for call in calls if isinstance(call.args[1], ast.Constant)]
    return [ast.unparse(call) for call in calls if CONTRACTS & set(re.findall(r"\w+", ast.unparse(call.args[0])))]


def test_what_has_a_contract_is_asked():
    calls = {module: sniffed(tree_of(module)) for module in FILES if module not in ADAPTERS}
    assert {module: found for module, found in calls.items() if found} == {}
    call = "getattr(self.model.backbone, 'img_size', None)"
    assert sniffed(ast.parse(call)) == [call]
    assert sniffed(ast.parse("hasattr(getattr(runner, name), 'blocks')")) == []
    assert sniffed(ast.parse("hasattr(task_of(model), 'blocks')")) != []


def test_the_rules_would_notice():
    assert violations("models.tasks.heads", {"crate_mm.datasets.sources"}) == ["datasets.sources"]
    assert violations("models.layers.ista", {"crate_mm.models.tasks.heads"}) == ["models.tasks.heads"]
    assert violations("models.families.crate", {"crate_mm.models.tasks.classifier"}) == ["models.tasks.classifier"]
    assert violations("engine.runner", {"crate_mm.evaluation.knn"}) == ["evaluation.knn"]
    assert violations("engine.runner", {"crate_mm.models.tasks.classifier"}) == ["models.tasks.classifier"]
    assert violations("analysis.figures.pca", {"crate_mm.engine.runner"}) == ["engine.runner"]
    assert violations("checkpoints.open", {"crate_mm.config.load"}) == []
    assert "crate_mm.registry.MODELS" in imports("models.tasks.classifier")
    assert "registry" in reached("cli.train")


def test_no_file_is_too_long_to_read():
    assert {name: n for name, p in FILES.items() if (n := len(p.read_text().splitlines())) > 400} == {}
