"""Images as a model takes them: opened, converted and transformed as in its test, a batch at a time."""

import logging
import math
from collections.abc import Iterable, Iterator
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
from ..datasets import build_transforms
from ..datasets.classification import has_extreme_aspect_ratio
from ..datasets.images import UnreadableImageError, convert, open_image
from ..datasets.transforms import to_uint8
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..models.backbone import image_spec
from ..registry import registered_only

MOST_BATCH = 2**26  # pixels of a batch of a model that a file describes: 64 images of 1024 x 1024
MOST_PIXELS_UNASKED = 2**20  # of an image that such a model's transforms may make, if its own are not larger


class TransformedImage(NamedTuple):
    """An image as it was given, and as the preprocessor takes it, uint8 ``(C, H, W)``, or the reason why not."""

    image: Any
    pixels: Tensor | None
    reason: str = ""


class EvalTransform:
    """How a model's images are opened, converted and transformed.

    Args:
        model: of ``init_model`` or ``get_model``, or a further task with ``in_channels``.
        transforms: as for ``Predictor``.
    """

    def __init__(self, model: nn.Module, transforms: list[dict] | None = None) -> None:
        self.mode = "L" if model.in_channels == 1 else "RGB"
        self.transforms = build_transforms(transforms) if transforms is not None else eval_transforms(model)
        # No weight bounds what a file says of sizes.
        self.described = model.described_by if transforms is None else None
        self.most_pixels = max(math.prod(image_size(model)), MOST_PIXELS_UNASKED)
        self.most_images = max(MOST_BATCH // self.most_pixels, 1) if self.described else None

    def fit_to(self, model: nn.Module) -> None:
        """End in the model's own size of images, where it has such: nothing changes after most transforms of a test."""
        spec = model.backbone.input_spec
        if spec is not None:
            self.transforms = v2.Compose([self.transforms, build_transforms([{"type": "Resize", "size": spec.size}])])

    def __call__(self, image: Any, number: int = 0) -> Tensor:
        """An image as the model's preprocessor takes it, uint8 ``(C, H, W)``; ``number`` names it in an error.

        Raises:
            UnreadableImageError: (a ``ValueError``) the image cannot be read.
            ValueError: it is of another kind.
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
                    f"{tuple(image.shape)}: expected uint8, from 0 to 255, of shape (1, H, W) or (3, H, W); the model "
                    "itself takes images that are normalised"
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
                raise  # a mistake in the transforms
            raise UnreadableImageError(f"it is very thin, and a transform fails: {sanitized(error)}") from None
        height, width = pixels.shape[-2:]
        if self.described and height * width > self.most_pixels:
            raise ValueError(
                f"{sanitized(self.described)} was tested with transforms that make images of {height} x {width} pixels, "
                f"more than {self.most_pixels:,}: give transforms"
            )
        return pixels

    def batches(self, images: Iterable[Any], batch_size: int, workers: int = 0) -> Iterator[list[TransformedImage]]:
        """Prepare images a batch at a time; those that cannot be read are in their places, with the reason.

        Args:
            images: whatever ``__call__`` takes, in any number: no more than two batches are in memory.
            batch_size: of a batch; the last one may be smaller, and all are where a file says large images.
            workers: threads that prepare the next batch while this one is used.

        Raises:
            ValueError: an image is of another kind.
        """
        numbered, batch_size = enumerate(images), min(batch_size, self.most_images or batch_size)
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


def stack_readable(prepared: list[TransformedImage]) -> Tensor:
    """The images of a batch that could be read, uint8 ``(B, C, H, W)``.

    Raises:
        ValueError: their sizes differ.
    """
    images = [one.pixels for one in prepared if one.pixels is not None]
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    if len(shapes) > 1:
        sizes = " and ".join(f"{height} x {width}" for _, height, width in shapes[:2])
        raise ValueError(f"prepared images have the sizes {sizes}: end the transforms with a crop or a resize to one")
    return torch.stack(images)


def eval_transforms(model: nn.Module) -> nn.Module:
    """The transforms that a model of ``init_model`` was tested with, or, with a warning, ImageNet's usual ones.

    Raises:
        ValueError: the model does not tell its image size, or the checkpoint's transforms cannot be built.
    """
    known, source = model.test_transforms, model.described_by
    if known is not None and source is None:
        return build_transforms(known)
    if known is not None:  # data of a file
        check_transforms(known, source)
        try:
            with registered_only():
                return build_transforms(known)
        except Exception as error:  # whatever a transform makes of arguments of any kind
            raise CheckpointError(
                f"{source} was tested with transforms that do not build: {sanitized(error)}"
            ) from None
    if model.backbone.input_spec is None:
        raise ValueError(f"{type(model.backbone).__name__} does not tell its image size: give transforms")
    H, W = image_spec(model.backbone).size
    resize = {"type": "Resize", "size": [round(H * 256 / 224), round(W * 256 / 224)] if H != W else H * 8 // 7}
    print_log(
        f"it is not known how the model's images were prepared for its test: resized to {resize['size']} and cropped "
        f"to {H} x {W}; Predictor(transforms=...) says otherwise",
        "current",
        logging.WARNING,
    )
    return build_transforms([resize, {"type": "CenterCrop", "size": (H, W)}])
