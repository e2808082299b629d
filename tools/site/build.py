"""Build the documentation site: every README unchanged, and a page from the docstrings of each public module.

It needs the extra ``docs`` and no network. A warning, such as for a link without a target, is an error. A module is
public if a package exports one of its definitions, if a registry contains one, or if a README names the module.
"""

import argparse
import importlib
import pkgutil
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sphinx.cmd.build import build_main

import crate_mm
from crate_mm import registry

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".github", "configs", "crate_mm", "tests", "tools")


def definitions(values: Iterable) -> list[str]:
    """Return the full names of the package's classes and functions among ``values``."""
    ours = (v for v in values if callable(v) and getattr(v, "__module__", "").startswith("crate_mm."))
    return sorted({f"{value.__module__}.{value.__qualname__}" for value in ours})


def exports(package: str) -> list[str]:
    """Return the full names of the classes and functions that a package exports from its modules."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    return [name for name in definitions(getattr(module, n) for n in names) if name.rpartition(".")[0] != package]


def registered() -> dict[str, list[str]]:
    """Return the package's entries of each registry."""
    registries = {name: value for name, value in vars(registry).items() if isinstance(value, registry.Registry)}
    for value in registries.values():
        value.import_from_location()
    return {name: definitions(value.module_dict.values()) for name, value in registries.items()}


def table(title: str, names: Iterable[str]) -> str:
    """Return a section with one row per name: a link to the docstring, and the docstring's first sentence."""
    rows = "".join(f"   ~{name}\n" for name in sorted(names, key=lambda name: name.rpartition(".")[2].lower()))
    head = f"\n.. py:currentmodule:: None\n\n{title}\n{'-' * len(title)}\n\n.. autosummary::\n   :nosignatures:\n\n"
    return f"{head}{rows}" if rows else ""


def api_pages(readmes: str) -> dict[str, str]:
    """Return a page for each public module; a package's page lists its exports and its modules."""
    modules = {info.name: info.ispkg for info in pkgutil.walk_packages(crate_mm.__path__, "crate_mm.")}
    exported = {name: exports(name) for name in ["crate_mm", *modules] if modules.get(name, True)}
    parts = registered()
    public = {name.rpartition(".")[0] for names in (*exported.values(), *parts.values()) for name in names}
    named = set(re.findall(r"\bcrate_mm(?:\.[a-z]\w*)+", readmes))
    public.update(
        m for m, is_package in modules.items() if not is_package and any(f"{n}.".startswith(f"{m}.") for n in named)
    )
    public = {".".join(name.split(".")[:n]) for name in public for n in range(1, name.count(".") + 2)}
    pages = {}
    for module in sorted(public):
        text = f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n"
        if module in exported:
            below = [name for name in sorted(public) if name.rpartition(".")[0] == module]
            text += table("Exports", exported[module]) + table("Modules", below)
            text += "\n.. toctree::\n   :hidden:\n\n"
            text += "".join(f"   {name.rpartition('.')[2]} <{name}>\n" for name in below)
        else:
            text += "   :members:\n"
        if module == registry.__name__:
            text += "".join(table(name, names) for name, names in parts.items())
        pages[module] = text
    return pages


def build(out: str, builder: str = "html") -> int:
    """Build the site into ``out``; return the exit code of Sphinx."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for path in ROOT.glob("*.md"):
            shutil.copy(path, source)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        readmes = "".join(path.read_text() for path in source.rglob("*.md"))
        (source / "api").mkdir()
        for module, text in api_pages(readmes).items():
            (source / "api" / f"{module}.rst").write_text(text)
        code = build_main(
            ["-W", "--keep-going", "-q", "-b", builder, "-c", str(Path(__file__).parent), str(source), out]
        )
    (Path(out) / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="folder to write, such as dist/site; its first page is index.html")
    parser.add_argument("--builder", default="html", help="Sphinx builder: html, or linkcheck to follow external links")
    args = parser.parse_args()
    sys.exit(build(args.out, args.builder))
