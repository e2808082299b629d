"""Fill in the size and the channels of the model's images in the transforms of a config.

Shapes: C channels, H x W pixels of the model's images.
"""

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from mmengine.config import Config

from ..models.backbone import InputSpec
from ..registry import BACKBONES
from .settings import LOADERS

# Only in the arguments below, "model" stands for the value of the model's images, and "model/8" for an eighth of it.
_MODELS = re.compile(r"model(?:/([1-9]\d*))?")
_ARGUMENTS = ("size", "padding", "channels")
DATA_ONLY = InputSpec(3, (224, 224))  # images of the papers' models; used if the data are read without a model


def fill_images(cfg: Config, needs_model: bool = True) -> None:
    """Replace ``"model"`` in a config's transforms by the size or the channels of the model's images, in place.

    ``size="model"`` becomes (H, W), ``channels="model"`` becomes C, and ``padding="model/8"`` becomes (W / 8, H / 8).

    Args:
        cfg: a config of ``load_config``.
        needs_model: whether a config without a model is an error. If not, images have the size of ``DATA_ONLY``.

    Raises:
        ValueError: the config defines no model, or its model does not declare the size of its images.
    """
    images = cache(lambda: _images_of(cfg.get("model") or {}, needs_model))  # builds the backbone only if needed
    for name in LOADERS:
        if (cfg.get(name) or {}).get("dataset"):
            cfg[name].dataset = _filled(cfg[name].dataset, images)


def _filled(value: Any, images: Callable[[], InputSpec], key: str = "") -> Any:
    """Return a config value with ``"model"`` replaced in it; ``key`` is the argument that has the value."""
    if isinstance(value, dict):
        return type(value)({key: _filled(inner, images, key) for key, inner in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(inner, images) for inner in value)
    match = _MODELS.fullmatch(value) if key in _ARGUMENTS and isinstance(value, str) else None
    if match is None:
        return value
    if key == "channels":
        return images().channels
    H, W = (side // int(match[1] or 1) for side in images().size)
    if key == "padding":  # torchvision's order: left and right, top and bottom
        return H if H == W else (W, H)
    return H, W


def _images_of(model: dict, needs_model: bool) -> InputSpec:
    if "type" not in model:
        if needs_model:
            raise ValueError("the transforms take the size of the model's images, but the config defines no model")
        return DATA_ONLY
    spec, backbone = None, model.get("backbone")
    if isinstance(backbone, dict) and "type" in backbone:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            spec = BACKBONES.build(copy.deepcopy(backbone)).input_spec
    if spec is None or not spec.is_image:
        raise ValueError(
            f"the transforms take the size of the model's images, which the model {model['type']} does not declare: "
            "set numbers in place of 'model' in the transforms"
        )
    return spec
