"""Prediction on images: files, folders, pictures, arrays and tensors, a batch at a time."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..datasets import ImageFiles, imagenet_class_names
from ..datasets.images import UnreadableImageError
from ..io.files import home
from ..io.log import print_log
from .transforms import EvalTransform, TransformedImage, stack_readable

ONE = (str, Path, Image.Image, np.ndarray, Tensor)  # kinds of an image that is given by itself
MOST_NAMED = 5  # images that cannot be read, in one line of the log


class Unreadable(list):
    """What stands in the place of an image that cannot be read: a list without classes, and the ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class Prediction(NamedTuple):
    """What ``Predictor.stream`` says of an image: ``TransformedImage``'s, and the likeliest classes with their probabilities,
    best first, or none where the image cannot be read."""

    image: Any
    pixels: Tensor | None
    reason: str
    classes: list[tuple[str, float]]


class Predictor:
    """Predict classes of images::

        predict = Predictor(init_model("crate_base_in1k", "crate_base.pth"))
        predict(["cat.jpg", "dog.jpg"])[0]  # [("tabby", 0.61), ("tiger cat", 0.2), ...]

    Args:
        model: of ``init_model`` or ``get_model``.
        transforms: configs of ``TRANSFORMS``; of the config's test data if not given, and without a config those that
            the checkpoint says it was tested with. Where neither tells, a resize to 256/224 of the model's size (of
            the shorter side, if that is square) and a centre crop, with a warning.
        class_names: of the checkpoint if not given; without any, ImageNet-1K's for 1000 classes and numbers else.
        topk: how many classes to return.
        batch_size: how many images go through the model at once.
        dtype: 'float32', or 'bfloat16' or 'float16' for products in that precision, which is faster where the processor
            has it and moves a logit by some hundredths of the logits' standard deviation.

    Raises:
        ValueError: the model is no classifier, or of another number of classes than there are names, or ``dtype`` is
            another.
    """

    def __init__(
        self,
        model: nn.Module,
        transforms: list[dict] | None = None,
        class_names: list[str] | None = None,
        topk: int = 5,
        batch_size: int = 64,
        dtype: str = "float32",
    ) -> None:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")
        self.dtype = getattr(torch, dtype)
        if not model.is_classifier:
            raise ValueError(f"Predictor is for classifiers: {type(model).__name__} predicts no classes")
        self.model = model.eval()
        self.preparation = EvalTransform(model, transforms)
        self.class_names = class_names or model.class_names or default_class_names(model.num_classes)
        if len(self.class_names) != model.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for a head of {model.num_classes} classes")
        self.topk = min(topk, model.num_classes)
        self.batch_size = batch_size

    @property
    def transforms(self) -> nn.Module:
        """What is done to an image before the preprocessor."""
        return self.preparation.transforms

    def __call__(self, images: Any) -> list[list[tuple[str, float]]]:
        """Return for each image its most likely classes with their probabilities, best first.

        Where an image cannot be read an ``Unreadable``, an empty list that has a ``reason``, is in its place, and a
        line in the log names it.

        Args:
            images: paths, PIL images, uint8 arrays ``(H, W)`` or ``(H, W, C)`` and uint8 tensors ``(C, H, W)``, in a
                list or whatever else has an order, such as an iterator; or one of these; or a batch ``(B, H, W, C)``
                or, as a tensor, ``(B, C, H, W)``; or a folder, for all images below it in the order of their paths.

        Raises:
            ValueError: an image is of another kind, or no image can be read.
        """
        predictions: list[list] = []
        for found in self.stream(images):
            predictions.append(Unreadable(found.reason) if found.reason else found.classes)
        broken = [(number, found.reason) for number, found in enumerate(predictions) if isinstance(found, Unreadable)]
        if not broken:
            return predictions
        said = "; ".join(f"image {number} cannot be read: {reason}" for number, reason in broken[:MOST_NAMED])
        if len(broken) == len(predictions):
            raise ValueError(said)
        more = f"; and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
        counted = f"{len(broken)} of {len(predictions)} images cannot be read"
        print_log(f"{counted}: {said}{more}", "current", logging.WARNING)
        return predictions

    def stream(self, images: Any, workers: int = 0) -> Iterator[Prediction]:
        """Predict an image after the other, for any number of them: no more than two batches are in memory.

        Args:
            images: as for a call.
            workers: threads that prepare images meanwhile.

        Raises:
            ValueError: an image is of another kind.
        """
        for prepared in self.preparation.batches(self._as_images(images), self.batch_size, workers):
            classes = iter(self._classify(prepared))
            for one in prepared:
                yield Prediction(*one, classes=[] if one.reason else next(classes))

    def _as_images(self, images: Any) -> Iterable[Any]:
        if isinstance(images, (str, Path)) and Path(home(images)).is_dir():
            return ImageFiles(str(images)).files
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
            return images
        if isinstance(images, ONE):
            return [images]
        if not isinstance(images, Iterable) or isinstance(images, (bytes, Mapping, Set)):
            raise ValueError(f"images are {type(images).__name__}: expected a list of paths, PIL images and arrays")
        return images

    @torch.inference_mode()
    def _classify(self, prepared: list[TransformedImage]) -> list[list[tuple[str, float]]]:
        if all(one.reason for one in prepared):
            return []
        data = self.model.data_preprocessor({"inputs": stack_readable(prepared)})
        scores, classes = self._logits(data["inputs"]).softmax(dim=-1).topk(self.topk)
        rows = zip(scores.tolist(), classes.tolist())
        return [[(self.class_names[c], score) for score, c in zip(row, ids)] for row, ids in rows]

    def _logits(self, inputs: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            return self.model(inputs)
        with torch.autocast(inputs.device.type, self.dtype):
            return self.model(inputs).float()

    def prepare(self, image: Any, number: int = 0) -> Tensor:
        """An image as the model's preprocessor takes it, uint8 ``(C, H, W)``; ``number`` names it in an error."""
        try:
            return self.preparation(image, number)
        except UnreadableImageError as error:
            raise ValueError(f"image {number} cannot be read: {error}") from None

    _load = prepare  # its former name


def default_class_names(num_classes: int) -> list[str]:
    """ImageNet-1K's English names for a thousand classes, numbers for any other number."""
    return imagenet_class_names() if num_classes == 1000 else [str(i) for i in range(num_classes)]
