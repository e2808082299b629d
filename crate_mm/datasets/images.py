"""Open images: known formats, regular files, bounded sizes, one exception class."""

import errno
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ..io.files import home
from ..io.untrusted import read_regular, sanitized

# Formats that are accepted. PIL supports four dozen formats, and for EPS it runs an external program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
_suffixes = Image.registered_extensions()  # loads PIL's formats
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is not in all builds of PIL
# Lower-case extensions of the formats and of MPO. Some cameras write MPO files, which begin with a JPEG.
IMAGE_SUFFIXES = tuple(sorted(end for end, name in _suffixes.items() if name in (*FORMATS, "MPO")))
MAX_PIXELS = 178_956_970  # PIL's limit for decompression bombs: half a gigabyte in RGB
MAX_IMAGE_BYTES = 2**30  # size of an image's file

# System errors: no file descriptors or no memory left. They are not due to the image, so the next image would fail too.
SYSTEM_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImageError(ValueError):
    """An image cannot be read, for any reason."""


def open_image(image: str | Path | bytes, mode: str | None = "RGB") -> Image.Image:
    """Decode an image file, or its content, completely.

    Args:
        image: path, or the file's content.
        mode: 'RGB', 'L', or None to keep the image's own mode.

    Raises:
        UnreadableImageError: the file is missing, not a regular file, in none of ``FORMATS``, damaged, or larger than
            ``MAX_PIXELS`` or ``MAX_IMAGE_BYTES``.
        OSError: a system error (``SYSTEM_ERRNOS``), which is not due to the image.
    """
    try:
        data = image if isinstance(image, bytes) else read_regular(home(image), MAX_IMAGE_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_pixels has its own limit
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                check_pixels(*file.size)
                file.load()  # decode now: errors are raised here, and the result does not refer to the buffer
                return convert(file, mode) if mode else file.copy()
    except UnreadableImageError:
        raise
    except Image.UnidentifiedImageError:
        message = f"cannot identify image file as one of the formats {', '.join(FORMATS)}: convert it"
        raise UnreadableImageError(message if data else "cannot identify image file: it is empty") from None
    except Exception as error:  # PIL and the system raise exceptions of many types for damaged files
        if is_system_error(error):
            raise
        raise UnreadableImageError(sanitized(str(error) or type(error).__name__)) from None


def is_system_error(error: Exception) -> bool:
    """Return whether an error is one of ``SYSTEM_ERRNOS``."""
    return isinstance(error, OSError) and error.errno in SYSTEM_ERRNOS


def check_pixels(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raise ``UnreadableImageError`` for an image of more than ``limit`` pixels."""
    if width * height > limit:
        raise UnreadableImageError(f"an image of {width} x {height} pixels is larger than the {limit:,} allowed")


def convert(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Convert like PIL, except for gray images of more than 8 bits, which PIL clips to 0..255.

    16-bit images are scaled to 8 bits. The range of 32-bit pixels (floats, and integers in a TIFF) is unknown, so only
    integers from 0 to 255 are accepted.

    Raises:
        UnreadableImageError: 32-bit pixels with other values.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        _check_range(values := np.asarray(image), 255)
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "I" or image.mode.startswith("I;16"):
        _check_range(values := np.asarray(image), 65535)
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colors, without PIL's warning in each process
    return image.convert(mode)


def _check_range(values: np.ndarray, highest: int) -> None:
    """Raise ``UnreadableImageError`` unless all values are integers from 0 to ``highest``; NaN is not accepted."""
    if not ((values >= 0) & (values <= highest) & (values == np.floor(values))).all():
        raise UnreadableImageError(
            f"32-bit gray values from {values.min():g} to {values.max():g}, with unknown black and white levels: save "
            "the image with 8 or 16 bits"
        )
