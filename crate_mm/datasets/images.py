"""Opening images of any kind as colour or gray ones of eight bits."""

from pathlib import Path

import numpy as np
from PIL import Image


def convert(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """PIL's ``convert``, but for grays of 16 bits, which it cuts off at 255: they are scaled."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert(mode)


def open_image(path: str | Path, mode: str = "RGB") -> Image.Image:
    """Read an image file.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: it is missing, damaged or absurdly large.
    """
    with Image.open(path) as image:
        return convert(image, mode)
