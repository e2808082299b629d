"""Train, evaluate and analyze CRATE, the white-box transformer.

The names in ``__all__`` are imported on first use, so that ``import crate_mm.registry`` is fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if not os.path.isfile(__file__):  # configs, assets and many libraries need real files
    raise ImportError(f"crate_mm is in an archive, {__file__}: install it with pip, or unpack the archive")

from . import moved  # noqa: F401  former names of modules

if TYPE_CHECKING:
    from .api import Predictor, from_official, get_model, init_model, list_models
    from .extras.report.write import report
    from .inference.white_box import draw, layer_measures

__version__ = "0.1.0"
__all__ = ["Predictor", "draw", "from_official", "get_model", "init_model", "layer_measures", "list_models", "report"]
# Public name -> its module, if this is not ``api``.
_MODULES = {"draw": "inference.white_box", "layer_measures": "inference.white_box", "report": "extras.report.write"}

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)
        raise AttributeError(f"module 'crate_mm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
