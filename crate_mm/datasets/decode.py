"""Decode JPEG bytes directly to a random crop or a resized image."""

import logging
import math
import threading

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ..io.log import print_log
from ..registry import TRANSFORMS
from .images import MAX_PIXELS, open_image
from .transforms import Resize


class DecodesBytes:
    """Transform that starts from an encoded image if the source provides it (see ``ClassificationDataset``)."""


@TRANSFORMS.register_module()
class DecodeRandomResizedCrop(v2.RandomResizedCrop, DecodesBytes):
    """torchvision's ``RandomResizedCrop`` that starts from the encoded image: bytes to uint8 ``(3, height, width)``.

    torchvision draws the crop, so the distribution is the same. libjpeg-turbo decodes a plain color JPEG: at 1/2, 1/4
    or 1/8 of its size if each side of the crop is at least 2, 4 or 8 times that of the output. Only the crop is
    resized, as uint8. PIL decodes all other images (PNG, gray, CMYK, ...). A PIL image is accepted too.

    As the first transform of a ``ClassificationDataset``, it gets the bytes of sources that have ``read``.

    Args: as for torchvision's ``RandomResizedCrop``, with bilinear or bicubic interpolation and antialiasing.

    Raises:
        ValueError: (when built) the interpolation is neither bilinear nor bicubic, or there is no antialiasing.
        OSError, ValueError: (when called) the bytes are not an image, or are truncated.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.local()
        self.mode = InterpolationMode(self.interpolation).value
        if self.mode not in ("bilinear", "bicubic") or not self.antialias:
            raise ValueError(
                f"DecodeRandomResizedCrop takes interpolation 'bilinear' or 'bicubic' with antialias=True, got "
                f"{self.mode!r} with antialias={self.antialias}: use RandomResizedCrop for others"
            )

    def forward(self, image: bytes | Image.Image) -> Tensor:
        if not isinstance(image, bytes):
            return super().forward(v2.functional.pil_to_tensor(image))
        size = plain_jpeg_size(image)
        if size is None:
            return super().forward(decode_by_pil(image))
        box = draw_crop(self, size)
        reduction = reduction_for((box["height"], box["width"]), self.size)
        pixels = decode_jpeg(image, size, reduction, self._memory_for(size))
        rows, columns = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
        top, left = round(box["top"] * rows), round(box["left"] * columns)
        height, width = max(round(box["height"] * rows), 1), max(round(box["width"] * columns), 1)
        crop = np.ascontiguousarray(pixels[None, top : top + height, left : left + width])
        # The same operation as in torchvision, without its conversion to channels first.
        crop = torch.from_numpy(crop).permute(0, 3, 1, 2)
        return F.interpolate(crop, self.size, mode=self.mode, align_corners=False, antialias=True)[0]

    def _memory_for(self, size: tuple[int, int]) -> np.ndarray:
        """Return a reused buffer for the pixels: allocating one per image would take a quarter of the decoding time."""
        memory = getattr(self._thread, "memory", None)
        if memory is None or memory.size < 3 * size[0] * size[1]:
            memory = self._thread.memory = np.empty(3 * size[0] * size[1], np.uint8)
        return memory

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_thread"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._thread = threading.local()


@TRANSFORMS.register_module()
class EncodedRandomResizedCrop(DecodeRandomResizedCrop):
    """``DecodeRandomResizedCrop`` followed by a horizontal flip, for existing configs; logs a warning.

    Args: as for ``DecodeRandomResizedCrop``, and ``flip``, the probability of the flip.
    """

    def __init__(self, *args, flip: float = 0.5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.flip = flip
        print_log(
            "EncodedRandomResizedCrop decodes on the CPU: it equals DecodeRandomResizedCrop and RandomHorizontalFlip",
            "current",
            logging.WARNING,
        )

    def forward(self, image: bytes | Image.Image) -> Tensor:
        crop = super().forward(image)
        return crop.flip(-1) if torch.rand(()) < self.flip else crop


@TRANSFORMS.register_module()
class DecodeResize(Resize, DecodesBytes):
    """torchvision's ``Resize`` that starts from the encoded image: bytes to uint8 ``(3, height, width)``.

    libjpeg-turbo decodes a plain color JPEG to the same pixels as PIL. Resizing is in uint8, and no value differs from
    PIL's result by more than one level. PIL decodes all other images. A PIL image is accepted too.

    As the first transform of a ``ClassificationDataset``, it gets the bytes of sources that have ``read``.

    Args: as for torchvision's ``Resize``, with bilinear interpolation and antialiasing.

    Raises:
        ValueError: (when built) no antialiasing, or not bilinear: bicubic pixels differ from PIL's by up to two levels.
        OSError, ValueError: (when called) the bytes are not an image, or are truncated.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        mode = InterpolationMode(self.interpolation).value
        if mode != "bilinear" or not self.antialias:
            raise ValueError(
                f"DecodeResize takes interpolation 'bilinear' with antialias=True, got {mode!r} with "
                f"antialias={self.antialias}: use Resize for others"
            )

    def forward(self, image: bytes | Image.Image) -> Tensor:
        if not isinstance(image, bytes):
            return super().forward(v2.functional.pil_to_tensor(image))
        size = plain_jpeg_size(image)
        if size is None:
            return super().forward(decode_by_pil(image))
        pixels = decode_jpeg(image, size, as_pil=True)
        # torchvision detects interleaved channels only in a batch, here of one image.
        return super().forward(torch.from_numpy(pixels[None]).permute(0, 3, 1, 2))[0]


def draw_crop(crop: v2.RandomResizedCrop, size: tuple[int, int]) -> dict[str, int]:
    """Draw ``top, left, height, width`` of a crop with torchvision, for an image of size ``(height, width)``."""
    return crop.make_params([torch.empty(()).expand(3, *size)])


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the ``(height, width)`` of a color JPEG of at most ``MAX_PIXELS`` pixels, or None for anything else."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: truncated header
        return None
    plain = colorspace in ("YCbCr", "RGB") and height * width <= MAX_PIXELS
    return (height, width) if plain else None


def reduction_for(crop: tuple[int, int], size: tuple[int, int]) -> int:
    """Return the largest reduction of an image (1, 2, 4 or 8) that keeps the crop at least as large as ``size``."""
    spare = min(crop_side / side for crop_side, side in zip(crop, size))
    return next(reduction for reduction in (8, 4, 2, 1) if spare >= reduction or reduction == 1)


def decode_jpeg(
    data: bytes,
    size: tuple[int, int],
    reduction: int = 1,
    memory: np.ndarray | None = None,
    as_pil: bool = False,
) -> np.ndarray:
    """Decode a JPEG of known size, reduced in the inverse cosine transform, to uint8 ``(h, w, 3)``.

    Args:
        data, size, reduction: the JPEG, its ``(height, width)``, and its reduction: 1, 2, 4 or 8.
        memory: buffer for the pixels, uint8 of at least ``3 * height * width``; allocated if not given.
        as_pil: upsample the chroma channels by interpolation, as PIL does. The default, repetition, saves an eighth of
            the work.
    """
    min_size = [math.ceil(side / reduction) for side in size] if reduction > 1 else (0, 0)

    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", fastupsample=not as_pil, min_height=min_size[0], min_width=min_size[1], buffer=memory
        )
    except ValueError:  # damaged or unusual: PIL decodes it or raises
        return np.array(open_image(data))


def decode_by_pil(data: bytes) -> Tensor:
    """Decode an image of any format in ``images.FORMATS``: uint8 ``(3, height, width)``."""
    return v2.functional.pil_to_tensor(open_image(data))
