"""Apply a model's test transforms to images, a batch at a time."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from ..checkpoints import CheckpointError, check_transforms
from ..checkpoints.described import image_size
from ..datasets import ImageFiles, build_transforms
from ..datasets.classification import has_extreme_aspect_ratio
from ..datasets.images import UnreadableImageError, convert, open_image
from ..datasets.transforms import to_uint8
from ..io.files import home
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..models.backbone import image_spec
from ..registry import registered_only

SINGLE_IMAGE = (str, Path, Image.Image, np.ndarray, Tensor)
# Limits for a model that a file describes.
MAX_BATCH_PIXELS = 2**26  # 64 images of 1024 x 1024
MAX_IMAGE_PIXELS = 2**20  # of a transformed image, unless the model's own image size is larger


class TransformedImage(NamedTuple):
    """An image and its pixels for the preprocessor.

    Attributes:
        image: the image as given.
        pixels: uint8 ``(C, H, W)``; None if the image cannot be read.
        reason: why the image cannot be read; empty otherwise.
    """

    image: Any
    pixels: Tensor | None
    reason: str = ""


class EvalTransform:
    """Open, convert and transform a model's images.

    Args:
        model: from ``init_model`` or ``get_model``, or another task with ``in_channels``.
        transforms: as for ``Predictor``.
    """

    def __init__(self, model: nn.Module, transforms: list[dict] | None = None) -> None:
        self.mode = "L" if model.in_channels == 1 else "RGB"
        self.transforms = build_transforms(transforms) if transforms is not None else eval_transforms(model)
        # A file's weights do not limit the image sizes that its transforms request.
        self.described = model.described_by if transforms is None else None
        self.max_pixels = max(math.prod(image_size(model)), MAX_IMAGE_PIXELS)
        self.max_images = max(MAX_BATCH_PIXELS // self.max_pixels, 1) if self.described else None

    def resize_to_model(self, model: nn.Module) -> None:
        """Append a resize to the image size of the model, if defined. Most test transforms already end in this size."""
        spec = model.backbone.input_spec
        if spec is not None:
            self.transforms = v2.Compose([self.transforms, build_transforms([{"type": "Resize", "size": spec.size}])])

    def __call__(self, image: Any, number: int = 0) -> Tensor:
        """Return an image as uint8 ``(C, H, W)`` for the preprocessor; errors name the image by ``number``.

        Raises:
            UnreadableImageError: (a ``ValueError``) the image cannot be read.
            ValueError: the type, dtype or shape of the image is not supported.
        """
        if isinstance(image, (str, Path)):
            image = open_image(image, mode=None)
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] not in ((), (1,), (3,)) or not image.size or image.ndim < 2:
                raise ValueError(
                    f"image {number} is an array of {image.dtype} of shape {image.shape}: "
                    "expected uint8 of shape (H, W), (H, W, 1) or (H, W, 3)"
                )
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        elif isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
                raise ValueError(
                    f"image {number} is a tensor of {str(image.dtype).removeprefix('torch.')} of shape "
                    f"{tuple(image.shape)}: expected uint8, from 0 to 255, of shape (1, H, W) or (3, H, W); to "
                    "predict on normalized images, call the model itself"
                )
            image = v2.functional.to_pil_image(image.cpu())
        elif not isinstance(image, Image.Image):
            raise ValueError(
                f"image {number} is {type(image).__name__}: expected a path, a PIL image, or a uint8 array or tensor"
            )
        image = convert(image, self.mode)
        try:
            pixels = to_uint8(self.transforms(image))
        except UnreadableImageError:
            raise
        except Exception as error:
            if not has_extreme_aspect_ratio(image):
                raise  # a bug in the transforms
            raise UnreadableImageError(f"it is very thin, and a transform fails: {sanitized(error)}") from None
        height, width = pixels.shape[-2:]
        if self.described and height * width > self.max_pixels:
            raise ValueError(
                f"{sanitized(self.described)} was tested with transforms that make images of {height} x {width} "
                f"pixels, more than {self.max_pixels:,}: give transforms"
            )
        return pixels

    def batches(self, images: Iterable[Any], batch_size: int, workers: int = 0) -> Iterator[list[TransformedImage]]:
        """Transform images a batch at a time. An unreadable image keeps its position in the batch, with the reason.

        Args:
            images: any number of inputs of ``__call__``; at most two batches are in memory.
            batch_size: largest number of images per batch; reduced if a file describes a model of large images.
            workers: threads that transform the next batch while this one is used.

        Raises:
            ValueError: an image is of an unsupported type, dtype or shape.
        """
        numbered, batch_size = enumerate(images), min(batch_size, self.max_images or batch_size)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            ahead: Iterable[TransformedImage] | None = None
            while chunk := list(islice(numbered, batch_size)):
                following = (pool.map if workers else map)(self._try, chunk)
                if ahead is not None:
                    yield list(ahead)
                ahead = following
            if ahead is not None:
                yield list(ahead)

    def _try(self, numbered: tuple[int, Any]) -> TransformedImage:
        number, image = numbered
        try:
            return TransformedImage(image, self(image, number))
        except UnreadableImageError as error:
            return TransformedImage(image, None, sanitized(error, 500))


def as_images(images: Any) -> Iterable[Any]:
    """Return an iterable of single images from any input that ``Predictor`` accepts.

    Raises:
        ValueError: ``images`` is of another type.
    """
    if isinstance(images, (str, Path)) and Path(home(images)).is_dir():
        return ImageFiles(str(images)).files
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return images
    if isinstance(images, SINGLE_IMAGE):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, (bytes, Mapping, Set)):
        raise ValueError(f"images are {type(images).__name__}: expected a list of paths, PIL images and arrays")
    return images


def stack_readable(prepared: list[TransformedImage]) -> Tensor:
    """Return the readable images of a batch as uint8 ``(B, C, H, W)``.

    Raises:
        ValueError: their sizes differ.
    """
    images = [item.pixels for item in prepared if item.pixels is not None]
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    if len(shapes) > 1:
        sizes = " and ".join(f"{height} x {width}" for _, height, width in shapes[:2])
        raise ValueError(
            f"transformed images have the sizes {sizes}: end the transforms with a crop or a resize to one size"
        )
    return torch.stack(images)


def eval_transforms(model: nn.Module) -> nn.Module:
    """Return the test transforms of a model. If they are unknown, warn and return ImageNet's resize and center crop.

    Raises:
        ValueError: the model's image size is unknown, or the checkpoint's transforms cannot be built.
    """
    known, source = model.test_transforms, model.described_by
    if known is not None and source is None:
        return build_transforms(known)
    if known is not None:  # untrusted data from a file
        check_transforms(known, source)
        try:
            with registered_only():
                return build_transforms(known)
        except Exception as error:  # transforms raise exceptions of any type on bad arguments
            raise CheckpointError(
                f"{source} was tested with transforms that do not build: {sanitized(error)}"
            ) from None
    if model.backbone.input_spec is None:
        raise ValueError(f"{type(model.backbone).__name__} does not define its image size: give transforms")
    H, W = image_spec(model.backbone).size
    resize = {"type": "Resize", "size": [round(H * 256 / 224), round(W * 256 / 224)] if H != W else H * 8 // 7}
    print_log(
        f"the model's test transforms are unknown: images are resized to {resize['size']} and center-cropped to "
        f"{H} x {W}; set others with Predictor(transforms=...)",
        "current",
        logging.WARNING,
    )
    return build_transforms([resize, {"type": "CenterCrop", "size": (H, W)}])
