"""CRATE, the white-box transformer, to train, evaluate and look into.

The names below load on first use, so that ``import crate_mm.registry`` stays light.
"""

import os

if not os.path.isfile(__file__):  # configs, the page's assets and many libraries' files are read as files
    raise ImportError(f"crate_mm lies in an archive, {__file__}: install it with pip, or unpack the archive")

from . import moved  # noqa: F401  former names of modules

__version__ = "0.1.0"
__all__ = ["Predictor", "from_official", "get_model", "init_model", "list_models"]


def __getattr__(name: str):
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'crate_mm' has no attribute {name!r}")
