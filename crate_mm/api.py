"""What a user imports: models by name or by config, and prediction on images."""

import logging
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from PIL import Image
from torch import nn

from .by_name import get_model, keep_what_is_told, list_models  # noqa: F401  what a user imports
from .checkpoints import CheckpointError, as_checkpoint, build_described, check_transforms, open_checkpoint
from .checkpoints.fit import fit
from .checkpoints.npz import as_tensor
from .config import require_model
from .datasets import build_transforms, imagenet_class_names
from .datasets.images import UnreadableImageError, convert, open_image
from .datasets.transforms import to_uint8
from .engine.features import load_config_for
from .registry import MODELS, registered_only
from .untrusted import shown


def init_model(
    config: str | Path | Config | None, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Build a config's model in eval mode, with the weights of a checkpoint if one is given.

    Args:
        config: a config, its file, or the name of one that comes with the package ('crate_base_in1k'). None takes the
            model from what the checkpoint says of itself, which is data: it names parts that are registered here, and
            can import or run nothing.
        checkpoint: a checkpoint of this package or of the official code: a path, https://host/file,
            hf://owner/repo/file with '@revision' behind it for another than the main branch, or the name of published
            weights ('crate_alpha_base_in1k').
        device: where the model goes.

    Raises:
        ValueError: no such config or checkpoint, or one that does not fit the other.
    """
    if config is None:
        if checkpoint is None:
            raise ValueError("neither a config nor a checkpoint is given: one of them must say what the model is")
        cfg, opened = {}, open_checkpoint(checkpoint)
        model = build_described(opened)
    else:
        cfg, opened = load_config_for(config, checkpoint, whole=True)
        require_model(cfg)
        model = MODELS.build(cfg.model)
    if opened is not None:
        fit(model, opened)
        opened.say(lambda note: print_log(note, "current", logging.INFO))
        keep_what_is_told(model, opened)
    test = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    if "transforms" in test:
        model.test_transforms, model.described_by = test["transforms"], None
    return model.to(device).eval()


def from_official(source: str | Path | Mapping[str, Any], **given: Any) -> nn.Module:
    """A model with another code base's weights, in their kind of number and in eval mode::

        from_official("crate_alpha_B16.pth")
        from_official("crate-demo.pth", num_heads=6)

    The families that know the names of the weights say what model they are of. What shapes do not tell and only one
    published model answers is taken as published, which the log says; whatever else they leave open must be given.

    Args:
        source: a .pth, .safetensors or .npz file, by its path, address or name as for ``init_model``, or what such a
            file holds: weights by name, or a dict with them.
        given: arguments of the model that shapes do not tell, such as ``num_heads``, ``ista_step_size``,
            ``ista_lambda`` and ``img_size``; what a family takes, its ``translate`` says.

    Raises:
        CheckpointError: (a ``ValueError``) the file is no checkpoint or one of ours, no family knows its names, its
            weights are not whole, or something is not given, which the message names, or given and not taken.
    """
    if isinstance(source, (str, Path)):
        opened = open_checkpoint(source, **given)
    else:
        arrays = {key: as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in source.items()}
        opened = as_checkpoint(arrays, "what is given", **given)
    if opened.model is not None and "translated_from" not in opened.meta:
        raise CheckpointError(f"{opened.path} is a checkpoint of crate_mm: init_model(None, file) takes it")
    if opened.model is None:
        known = "no family here knows the names of its weights, so that it is not known what model they are of"
        raise CheckpointError(f"{opened.path}: {opened.unknown or known}")
    model = build_described(opened)
    kinds = {value.dtype for value in opened.weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        model.to(*kinds)
    for name, value in model.state_dict(keep_vars=True).items():
        if opened.weights[name].is_floating_point():
            value.data = value.data.to(opened.weights[name].dtype)
    fit(model, opened)
    opened.say(lambda note: print_log(note, "current", logging.INFO))
    return model.eval()


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
        if not getattr(model, "num_classes", 0):
            raise ValueError(f"Predictor is for classifiers: {type(model).__name__} predicts no classes")
        self.model = model.eval()
        self.transforms = build_transforms(transforms) if transforms is not None else test_transforms(model)
        self.class_names = class_names or getattr(model, "class_names", None) or default_class_names(model.num_classes)
        if len(self.class_names) != model.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for a head of {model.num_classes} classes")
        self.topk = min(topk, model.num_classes)
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, images: Any) -> list[list[tuple[str, float]]]:
        """Return for each image its most likely classes with their probabilities, best first.

        Args:
            images: paths, PIL images and uint8 arrays ``(H, W)`` or ``(H, W, C)`` in a list or whatever else has an
                order, or one of these.

        Raises:
            ValueError: an image that cannot be read, or of another kind.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            images = [images]
        if not isinstance(images, Iterable) or isinstance(images, (bytes, Mapping, Set)):
            raise ValueError(f"images are {type(images).__name__}: expected a list of paths, PIL images and arrays")
        predictions, images = [], list(images)
        for start in range(0, len(images), self.batch_size):
            batch = [self.prepare(image, start + i) for i, image in enumerate(images[start : start + self.batch_size])]
            data = self.model.data_preprocessor({"inputs": torch.stack(batch)})
            scores, classes = self._logits(data["inputs"]).softmax(dim=-1).topk(self.topk)
            for row, ids in zip(scores.tolist(), classes.tolist()):
                predictions.append([(self.class_names[c], score) for score, c in zip(row, ids)])
        return predictions

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.dtype == torch.float32:
            return self.model(inputs)
        with torch.autocast(inputs.device.type, self.dtype):
            return self.model(inputs).float()

    def prepare(self, image: Any, number: int = 0) -> torch.Tensor:
        """An image as the model's preprocessor takes it, uint8 ``(C, H, W)``; ``number`` names it in an error."""
        if isinstance(image, (str, Path)):
            try:
                image = open_image(image, mode=None)
            except UnreadableImageError as error:
                raise ValueError(f"image {number} cannot be read: {error}") from None
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] not in ((), (1,), (3,)) or not image.size or image.ndim < 2:
                raise ValueError(
                    f"image {number} is an array of {image.dtype} of shape {image.shape}: "
                    "expected uint8 of shape (H, W), (H, W, 1) or (H, W, 3)"
                )
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        elif not isinstance(image, Image.Image):
            raise ValueError(f"image {number} is {type(image).__name__}: expected a path, a PIL image or a uint8 array")
        try:
            image = convert(image, "L" if self.model.in_channels == 1 else "RGB")
        except UnreadableImageError as error:
            raise ValueError(f"image {number} cannot be read: {error}") from None
        return to_uint8(self.transforms(image))

    _load = prepare  # its former name


def test_transforms(model: nn.Module) -> nn.Module:
    """The transforms that a model of ``init_model`` was tested with, or, with a warning, ImageNet's usual ones.

    Raises:
        ValueError: the model does not tell its image size, or the checkpoint's transforms cannot be built.
    """
    known, source = getattr(model, "test_transforms", None), getattr(model, "described_by", None)
    if known is not None and source is None:
        return build_transforms(known)
    if known is not None:  # data of a file
        check_transforms(known, source)
        try:
            with registered_only():
                return build_transforms(known)
        except Exception as error:  # whatever a transform makes of arguments of any kind
            raise CheckpointError(f"{source} was tested with transforms that do not build: {shown(error)}") from None
    if not hasattr(model.backbone, "img_size"):
        raise ValueError(f"{type(model.backbone).__name__} does not tell its image size: give transforms")
    H, W = model.backbone.img_size
    resize = {"type": "Resize", "size": [round(H * 256 / 224), round(W * 256 / 224)] if H != W else H * 8 // 7}
    print_log(
        f"it is not known how the model's images were prepared for its test: resized to {resize['size']} and cropped "
        f"to {H} x {W}; Predictor(transforms=...) says otherwise",
        "current",
        logging.WARNING,
    )
    return build_transforms([resize, {"type": "CenterCrop", "size": (H, W)}])


def default_class_names(num_classes: int) -> list[str]:
    """ImageNet-1K's English names for a thousand classes, numbers for any other number."""
    return imagenet_class_names() if num_classes == 1000 else [str(i) for i in range(num_classes)]
