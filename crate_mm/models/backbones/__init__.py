from .crate import ARCHS, CRATE

__all__ = ["ARCHS", "CRATE"]
