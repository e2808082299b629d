"""The one way in which images are opened: known formats, regular files, bounded sizes, one kind of error."""

import errno
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ..io.files import home
from ..io.untrusted import read_regular, sanitized

# PIL knows four dozen formats, one of which (EPS) starts a program to be drawn.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
_suffixes = Image.registered_extensions()  # which loads PIL's formats
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is not in all builds of PIL
# Endings of their files, in small letters; what some cameras write (MPO) begins with a JPEG.
IMAGE_SUFFIXES = tuple(sorted(end for end, name in _suffixes.items() if name in (*FORMATS, "MPO")))
MAX_PIXELS = 178_956_970  # what PIL takes for a decompression bomb: three colours of it have half a gigabyte
MAX_IMAGE_BYTES = 2**30  # of an image's file


# What no image is to blame for, and the next one meets too: no files, or no memory, are left.
SYSTEM_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImageError(ValueError):
    """An image that cannot be read, for whatever reason."""


def open_image(image: str | Path | bytes, mode: str | None = "RGB") -> Image.Image:
    """Read an image file, or the bytes of one, to its last pixel.

    Args:
        image: path, or the file's content.
        mode: 'RGB', 'L', or None to leave the image in its own.

    Raises:
        UnreadableImageError: it is missing, no regular file, of none of ``FORMATS``, damaged, or larger than
            ``MAX_PIXELS``.
        OSError: it is not the image's fault, see ``SYSTEM_ERRNOS``.
    """
    try:
        data = image if isinstance(image, bytes) else read_regular(home(image), MAX_IMAGE_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is below
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                check_pixels(*opened.size)
                opened.load()
                # load() has read everything: what is returned needs neither the bytes nor a file.
                return convert(opened, mode) if mode else opened.copy()
    except UnreadableImageError:
        raise
    except Image.UnidentifiedImageError:
        known = f"cannot identify image file as one of the formats {', '.join(FORMATS)}: convert it"
        raise UnreadableImageError(known if data else "cannot identify image file: it is empty") from None
    except Exception as error:  # PIL's own, of damaged files, are of many kinds; so are the system's
        if is_system_error(error):
            raise
        raise UnreadableImageError(sanitized(str(error) or type(error).__name__)) from None


def is_system_error(error: Exception) -> bool:
    """Whether an error is one that no image is to blame for."""
    return isinstance(error, OSError) and error.errno in SYSTEM_ERRNOS


def check_pixels(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raise ``UnreadableImageError`` for an image of more than so many pixels."""
    if width * height > most:
        raise UnreadableImageError(f"an image of {width} x {height} pixels is larger than the {most:,} allowed")


def convert(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """PIL's ``convert``, but for grays of more than 8 bits, which it cuts off at 0 and 255.

    Those of 16 bits are scaled. What 32 bits hold (fractions, and a TIFF's whole numbers) has no range that anything
    tells: it is taken where it is whole numbers from 0 to 255, and refused where it is not.

    Raises:
        UnreadableImageError: the image is refused.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        _check_range(values := np.asarray(image), 255)
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "I" or image.mode.startswith("I;16"):
        _check_range(values := np.asarray(image), 65535)
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without a warning for each process that meets such an image
    return image.convert(mode)


def _check_range(values: np.ndarray, most: int) -> None:
    """Raise ``UnreadableImageError`` unless values are whole numbers from 0 to ``most``; NaN is none."""
    if not ((values >= 0) & (values <= most) & (values == np.floor(values))).all():
        raise UnreadableImageError(
            f"its grays have 32 bits and go from {values.min():g} to {values.max():g}: what is black and what is white "
            "is not known, save it with 8 or 16 bits"
        )
