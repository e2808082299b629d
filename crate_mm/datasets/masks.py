"""Masks with one label per pixel: files, colors, and the contract of a source of images with masks.

Shapes: H x W pixels of an image.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..io.files import home
from ..io.untrusted import read_regular, sanitized
from .base import IGNORED_PIXEL, Source
from .images import MAX_IMAGE_BYTES, UnreadableImageError, open_image

MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
PNG_SIGNATURE, PNG_GRAY = b"\x89PNG\r\n\x1a\n", 0


class MaskSource(Source):
    """Images by position, as pairs (PIL image, labels uint8 ``(H, W)``); the label 255 is ignored.

    Subclasses define ``classes``, ``__len__``, and either ``load`` or both ``path`` and ``mask_path`` (file paths).

    Attributes:
        first_label: the value of class 0 in the masks; pixels with smaller values are ignored.
    """

    classes: tuple[str, ...] | list[str]
    first_label: ClassVar[int] = 0

    def mask_path(self, index: int) -> str:
        """Return the path of an image's mask, or a name for messages."""
        return f"of {self.path(index)}"

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return an image and the values of its mask, integers ``(H, W)``."""
        return open_image(self.path(index)), read_mask(self.mask_path(index))

    def labels_of(self, values: np.ndarray) -> np.ndarray:
        """Return the labels of a mask's values, both ``(H, W)``: classes from 0, and 255 for ignored pixels."""
        labels = values.astype(np.int64) - self.first_label
        return np.where((labels < 0) | (values == IGNORED_PIXEL), IGNORED_PIXEL, labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return an image and its labels.

        Raises:
            UnreadableImageError: the image or the mask cannot be read, their sizes differ, the mask has colors, or the
                mask has a label outside the classes.
        """
        image, values = self.load(index)
        name, labels = sanitized(self.mask_path(index)), self.labels_of(values)
        if labels.shape != image.size[::-1]:
            (H, W), (width, height) = labels.shape, image.size
            raise UnreadableImageError(
                f"the mask {name} has {W} x {H} pixels, its image {width} x {height}: they must have the same size"
            )
        label = int(np.where(labels == IGNORED_PIXEL, 0, labels).max(initial=0))
        if label >= len(self.classes):
            raise UnreadableImageError(
                f"the mask {name} has the value {label + self.first_label}, which is class {label}, but the classes "
                f"are 0 to {len(self.classes) - 1}"
            )
        return image, labels.astype(np.uint8)


def read_mask(file: str | Path) -> np.ndarray:
    """Return the values of a mask file, integers ``(H, W)``: palette indices, or gray levels of 1 to 16 bits.

    Raises:
        UnreadableImageError: the file cannot be read, has colors, or is not a PNG: other formats may change values.
    """
    try:
        data = read_regular(home(file), MAX_IMAGE_BYTES)
    except OSError as error:
        raise UnreadableImageError(f"the mask {sanitized(file)} cannot be read: {sanitized(error)}") from None
    if not data.startswith(PNG_SIGNATURE):
        raise UnreadableImageError(f"the mask {sanitized(file)} is not a PNG: other formats may change labels")
    try:
        image = open_image(data, mode=None)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"the mask {sanitized(file)} cannot be read: {error}") from None
    if image.mode not in MASK_MODES:
        raise UnreadableImageError(
            f"the mask {sanitized(file)} is a color image ({image.mode}): expected one label per pixel, as a palette "
            "PNG or as gray of 8 or 16 bits"
        )
    values = np.asarray(image).astype(np.int64)
    bits, kind = data[24], data[25]  # bit depth and color type in the PNG's header
    return values // (255 // (2**bits - 1)) if kind == PNG_GRAY and bits in (2, 4) else values  # PIL scales to 0..255


def palette(num_classes: int) -> np.ndarray:
    """Return a color for each class, uint8 ``(num_classes, 3)``: the palette of PASCAL VOC, class 0 black."""
    labels = np.arange(num_classes)
    colors = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):  # bits 0, 1, 2 of a label are the highest bits of red, green, blue; bits 3, 4, 5 the next, ...
        for channel in range(3):
            colors[:, channel] |= (((labels >> channel) & 1) << (7 - bit)).astype(np.uint8)
        labels = labels >> 3
    return colors


def to_palette_image(labels: np.ndarray) -> Image.Image:
    """Return labels uint8 ``(H, W)`` as an image of mode P with the labels as indices and ``palette`` as colors."""
    image = Image.fromarray(labels)
    image.putpalette(palette(256).flatten().tolist())
    return image


def overlay(pixels: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Return an image uint8 ``(H, W, 1 or 3)`` blended with the colors of its labels ``(H, W)``, uint8 ``(H, W, 3)``.

    Ignored pixels keep their color.
    """
    image = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(float)
    mixed = (1 - opacity) * image + opacity * palette(256)[labels]
    return np.where((labels == IGNORED_PIXEL)[..., None], image, mixed).round().astype(np.uint8)
