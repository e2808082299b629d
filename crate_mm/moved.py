"""Import hook for former module names."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "apis": "api",
    "analysis.capture": "analysis.taps",
    "analysis.complexity": "analysis.cost",
    "analysis.layers": "analysis.gather",
    "analysis.report.gather": "extras.report.collect",
    "analysis.report": "extras.report",
    "checkpoints.export": "extras.interop.export",
    "engine.checkpoint": "checkpoints",
    "engine.cli": "cli.options",
    "engine.blocks": "engine.parallel.blocks",
    "engine.features": "inference.standalone",
    "engine.overrides": "config.kinds",
    "engine.published": "checkpoints.publish",
    "engine.safety.work_dir": "engine.safety.lock",
    "engine.transfer": "checkpoints.fit",
}


class _Finder(MetaPathFinder, Loader):
    """Find a module by its former name and issue a ``DeprecationWarning``."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        moved = name.startswith("crate_mm.") and name.removeprefix("crate_mm.") in MOVED
        return ModuleSpec(name, self) if moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"crate_mm.{MOVED[spec.name.removeprefix('crate_mm.')]}"
        warnings.warn(f"{spec.name} was renamed to {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._own = {name: getattr(module, name, None) for name in ("__spec__", "__loader__")}
        return module

    def exec_module(self, module: ModuleType) -> None:
        for name, value in self._own.items():  # the import system has overwritten them
            setattr(module, name, value)


sys.meta_path.append(_Finder())
