"""Support former names of modules by an import hook, and former names of functions and classes in these modules."""

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
    "checkpoints.average": "extras.average",
    "checkpoints.export": "extras.interop.export",
    "datasets.check": "extras.dataset_check",
    "datasets.encoding": "extras.encoding",
    "engine.bench": "extras.bench",
    "engine.checkpoint": "checkpoints",
    "engine.cli": "cli.options",
    "engine.blocks": "engine.parallel.blocks",
    "engine.curves": "extras.curves",
    "engine.doctor": "extras.doctor",
    "engine.features": "inference.standalone",
    "engine.loading.sample_preview": "extras.sample_preview",
    "engine.overrides": "config.kinds",
    "engine.published": "checkpoints.publish",
    "engine.safety.work_dir": "engine.safety.lock",
    "engine.soup": "extras.average",
    "engine.transfer": "checkpoints.fit",
    "evaluation.reports": "extras.evaluation_reports",
}
# Former module name -> {former name of a function or class: its current name}.
FORMER_NAMES = {
    "analysis.report.gather": {"Data": "ReportDataset"},
    "engine.blocks": {"checkpoint_blocks": "enable_activation_checkpointing"},
    "engine.features": {
        "build_backbone_from": "build_transferred_model",
        "load_config_for": "load_config_and_checkpoint",
    },
    "engine.safety.work_dir": {"hold": "lock_work_dir"},
}


class _Finder(MetaPathFinder, Loader):
    """Find a module by its former name and issue a ``DeprecationWarning``."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        moved = name.startswith("crate_mm.") and name.removeprefix("crate_mm.") in MOVED
        return ModuleSpec(name, self) if moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        former = spec.name.removeprefix("crate_mm.")
        new = f"crate_mm.{MOVED[former]}"
        warnings.warn(f"{spec.name} was renamed to {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        for name, renamed in FORMER_NAMES.get(former, {}).items():
            setattr(module, name, getattr(module, renamed))
        self._own = {name: getattr(module, name, None) for name in ("__spec__", "__loader__")}
        return module

    def exec_module(self, module: ModuleType) -> None:
        for name, value in self._own.items():  # undo: the import system has replaced these attributes
            setattr(module, name, value)


sys.meta_path.append(_Finder())
