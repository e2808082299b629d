"""Segment images at their own size, one at a time: files, folders, PIL images, arrays and tensors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from ..checkpoints import check_transforms
from ..datasets.images import UnreadableImageError, open_image
from ..datasets.segmentation import keeps_whole_image
from ..io.untrusted import sanitized
from .transforms import EvalTransform, as_images


class MaskPrediction(NamedTuple):
    """Result of ``MaskPredictor.stream`` for one image.

    Attributes:
        image: the image as given.
        labels: the class of each pixel, uint8 ``(H, W)``, at the image's own size; None if the image cannot be read.
        reason: why the image cannot be read; empty otherwise.
    """

    image: Any
    labels: np.ndarray | None
    reason: str = ""


class MaskPredictor:
    """Predict the class of each pixel with a ``Segmentation``, with its sliding window if it defines one.

    Args:
        model: a ``Segmentation`` with its weights.
        dtype: dtype of matrix products, as for ``Predictor``.

    Raises:
        ValueError: the model labels no pixels, or its test transforms do not keep the whole image.
    """

    def __init__(self, model: nn.Module, dtype: str = "float32") -> None:
        if not model.labels_pixels:
            raise ValueError(f"MaskPredictor is for segmentations: {type(model).__name__} labels no pixels")
        transforms = [] if model.test_transforms is None else model.test_transforms  # images of any size are accepted
        if not keeps_whole_image(transforms):
            names = ", ".join(sanitized(cfg.get("type")) for cfg in transforms)
            raise ValueError(
                f"the model was tested with transforms that do not keep the whole image ({names}), so its masks would "
                "not cover an image: train the model with whole-image test transforms"
            )
        if model.described_by is not None:  # untrusted data from a file
            check_transforms(transforms, model.described_by)
        self.model, self.dtype = model.eval(), getattr(torch, dtype)
        self.preparation = EvalTransform(model, transforms)
        self.class_names: list[str] = model.class_names or [str(label) for label in range(model.num_classes)]

    def __call__(self, image: Any) -> np.ndarray:
        """Return the class of each pixel, uint8 ``(H, W)``; raise ``ValueError`` if the image cannot be read."""
        (result,) = self.stream(image)
        if result.labels is None:
            raise ValueError(f"the image cannot be read: {result.reason}")
        return result.labels

    def stream(self, images: Any) -> Iterator[MaskPrediction]:
        """Yield the mask of each image; ``images`` is as for ``Predictor``."""
        for number, image in enumerate(as_images(images)):
            try:
                opened = open_image(image, mode=None) if isinstance(image, (str, Path)) else image
                pixels = self.preparation(opened, number)
            except UnreadableImageError as error:
                yield MaskPrediction(image, None, sanitized(error, 500))
                continue
            yield MaskPrediction(image, self._labels(pixels, size_of(opened)))

    @torch.inference_mode()
    def _labels(self, pixels: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        inputs = self.model.data_preprocessor({"inputs": pixels[None]})["inputs"]
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.logits(inputs, size).argmax(1)[0].to(torch.uint8).cpu().numpy()


def size_of(image: Image.Image | np.ndarray | torch.Tensor) -> tuple[int, int]:
    """Return height and width of an image as ``EvalTransform`` accepts it."""
    return tuple(image.shape[:2] if isinstance(image, np.ndarray) else v2.functional.get_size(image))
