"""Train, evaluate and analyze CRATE, the white-box transformer.

The names in ``__all__`` are imported on first use, so that ``import crate_mm.registry`` is fast.
"""

import os
from importlib import import_module

if not os.path.isfile(__file__):  # configs, assets and many libraries need real files
    raise ImportError(f"crate_mm is in an archive, {__file__}: install it with pip, or unpack the archive")

from . import moved  # noqa: F401  former names of modules

__version__ = "0.1.0"
__all__ = ["Predictor", "draw", "from_official", "get_model", "init_model", "layer_measures", "list_models", "report"]
# Modules of the names that are not in ``api``.
_MODULES = {"draw": "inference.white_box", "layer_measures": "inference.white_box", "report": "extras.report.write"}


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'crate_mm' has no attribute {name!r}")
