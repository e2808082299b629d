"""Encode arrays for JSON: quantized to 8 or 16 bits, compressed, in base64.

    value = (q / most)^power * scale          most: 255 or 65535

``power`` 2 quantizes the square root, which keeps small values precise beside large values, as in attention. With n
scales, each applies to one n-th of the values, in order. ``unpack`` and the page (``assets/data.js``) decode arrays.
"""

import base64
import gzip
from typing import Any

import numpy as np
from torch import Tensor


def pack(values: Tensor | np.ndarray, bits: int = 8, power: int = 1, groups: int = 1) -> dict[str, Any]:
    """Encode nonnegative values. The error is at most ``scale / most``; nonzero values stay nonzero.

    Args:
        values: array of any shape.
        bits: 8 or 16.
        power: 1 or 2, see the module's docstring.
        groups: number of scales; must divide the number of values.

    Raises:
        ValueError: a value is negative or not finite.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("values to pack must be finite and nonnegative: check the model's weights")
    most, dtype = (255, np.uint8) if bits == 8 else (65535, np.dtype("<u2"))
    rows = array.reshape(groups, -1)
    scale = rows.max(axis=1, initial=0)
    relative = rows / np.where(scale > 0, scale, 1)[:, None]
    q = np.round(relative ** (1 / power) * most)
    q = np.where((q == 0) & (rows > 0), 1, q).astype(dtype)
    text = base64.b64encode(gzip.compress(q.tobytes(), 9, mtime=0)).decode()
    scale = [float(s) for s in scale]
    return {"bits": bits, "power": power, "shape": list(array.shape), "scale": scale, "gzip": text}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """Decode an array encoded by ``pack``."""
    most, dtype = (255, np.uint8) if packed["bits"] == 8 else (65535, np.dtype("<u2"))
    q = np.frombuffer(gzip.decompress(base64.b64decode(packed["gzip"])), dtype).astype(np.float64)
    scale = np.asarray(packed["scale"])
    rows = (q / most).reshape(len(scale), -1) ** packed["power"] * scale[:, None]
    return rows.reshape(packed["shape"])
