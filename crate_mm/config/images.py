"""Fill in the size and the channels of the model's images in the transforms of a config.

Shapes: C channels, H x W pixels of the model's images.
"""

import copy
import re
from typing import Any

import torch
from mmengine.config import Config

from ..models.backbone import InputSpec
from ..registry import BACKBONES
from .settings import LOADERS

# "model" stands for the value of the model's images, "model/8" for an eighth of it, in the arguments below only.
_MODELS = re.compile(r"model(?:/([1-9]\d*))?")
_ARGUMENTS = ("size", "padding", "channels")
DATA_ONLY = InputSpec(3, (224, 224))  # as for the papers' models; used if data is read without a model


def fill_images(cfg: Config, needs_model: bool = True) -> bool:
    """Replace ``"model"`` in a config's transforms by the size or the channels of the model's images, in place.

    ``size="model"`` becomes (H, W), ``channels="model"`` C, and ``padding="model/8"`` an eighth of the image's sides.

    Args:
        cfg: a config of ``load_config``.
        needs_model: whether a config without a model is an error. If not, images have the size of ``DATA_ONLY``.

    Returns:
        Whether a value was replaced.

    Raises:
        ValueError: the config defines no model, or its model does not declare the size of its images.
    """
    datasets = [(cfg.get(name) or {}).get("dataset") for name in LOADERS]
    if not any(map(_asks, datasets)):
        return False
    spec = _images_of(cfg.get("model") or {}, needs_model)
    for name, dataset in zip(LOADERS, datasets):
        if _asks(dataset):
            cfg[name].dataset = _filled(dataset, spec)
    return True


def _asks(value: Any, key: str = "") -> bool:
    if isinstance(value, dict):
        return any(_asks(inner, key) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return any(map(_asks, value))
    return key in _ARGUMENTS and isinstance(value, str) and _MODELS.fullmatch(value) is not None


def _filled(value: Any, spec: InputSpec, key: str = "") -> Any:
    if isinstance(value, dict):
        return type(value)({key: _filled(inner, spec, key) for key, inner in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(inner, spec) for inner in value)
    if not _asks(value, key):
        return value
    if key == "channels":
        return spec.channels
    H, W = (side // int(_MODELS.fullmatch(value)[1] or 1) for side in spec.size)
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
