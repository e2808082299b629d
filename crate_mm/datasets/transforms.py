"""torchvision's transforms v2 under our registry, each under its own name."""

import inspect
import math
from collections.abc import Iterable

import torch
from torchvision.transforms import InterpolationMode, v2

from ..registry import TRANSFORMS
from .images import MAX_PIXELS, check_pixels

MAX_OUTPUT_PIXELS = 2**25  # pixels that a transform may make of any image: a tenth of a gigabyte


def check_output_size(image, height: int, width: int) -> None:
    """Raise ``UnreadableImageError`` where a transform would make more of an image than memory should hold.

    That is ``MAX_OUTPUT_PIXELS`` pixels or sixteen times the image's own, and in any case ``MAX_PIXELS``: of 6000 x 2 pixels
    ``Resize(256)`` would make 200 million.
    """
    own = math.prod(v2.functional.get_size(image))
    check_pixels(height, width, min(max(MAX_OUTPUT_PIXELS, 16 * own), MAX_PIXELS))


class _BoundedResize:
    """A transform that may give the shorter side a length: of a thin image it would make the longer one any length."""

    def transform(self, inpt, params: dict):
        size = params.get("size", getattr(self, "size", None))
        if size is not None and len(size) == 2:
            check_output_size(inpt, *size)
        elif size is not None and not (isinstance(self, v2.Resize) and self.max_size):
            short, long = sorted(v2.functional.get_size(inpt))
            check_output_size(inpt, size[0], size[0] * long // short)
        return super().transform(inpt, params)


@TRANSFORMS.register_module()
class Resize(_BoundedResize, v2.Resize):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""


@TRANSFORMS.register_module()
class RandomResize(_BoundedResize, v2.RandomResize):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""


@TRANSFORMS.register_module()
class RandomShortestSize(_BoundedResize, v2.RandomShortestSize):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""


class _BoundedGrowth:
    """A transform that makes an image larger by itself."""

    def transform(self, inpt, params: dict):
        height, width = v2.functional.get_size(inpt)
        check_output_size(inpt, *self.largest(height, width))
        return super().transform(inpt, params)


@TRANSFORMS.register_module()
class RandomRotation(_BoundedGrowth, v2.RandomRotation):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        side = math.ceil((height + width) / math.sqrt(2)) if self.expand else 0  # at 45 degrees
        return side, side


@TRANSFORMS.register_module()
class RandomZoomOut(_BoundedGrowth, v2.RandomZoomOut):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        return math.ceil(height * self.side_range[1]), math.ceil(width * self.side_range[1])


def _padding(padding: int | list[int]) -> tuple[int, int]:
    """By how much a padding, as torchvision takes it, makes an image higher and wider."""
    if isinstance(padding, int):
        return 2 * padding, 2 * padding
    left, top, right, bottom = padding if len(padding) == 4 else list(padding) * (4 // len(padding))
    return top + bottom, left + right


@TRANSFORMS.register_module()
class Pad(_BoundedGrowth, v2.Pad):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        higher, wider = _padding(self.padding) if not isinstance(self.padding, dict) else (0, 0)
        return height + higher, width + wider


@TRANSFORMS.register_module()
class RandomCrop(_BoundedGrowth, v2.RandomCrop):
    """torchvision's; raises ``UnreadableImageError`` rather than make too large an image."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        higher, wider = _padding(self.padding) if self.padding is not None else (0, 0)
        return max(height + higher, self.size[0]), max(width + wider, self.size[1])


@TRANSFORMS.register_module()
class RandomErasing(v2.RandomErasing):
    """torchvision's; ``value`` is in 0..255, as images are uint8 here, where normal noise would be 0, 1 and 255."""

    def __init__(self, p: float = 0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0, inplace: bool = False) -> None:
        if value == "random":
            raise ValueError(
                "RandomErasing: images are uint8 here, which value='random', normal noise, is not made for: "
                "model.batch_augments=[dict(type='BatchRandomErasing')] erases them once they are normalised"
            )
        super().__init__(p, scale, ratio, value, inplace)


for _name, _module in inspect.getmembers(v2, inspect.isclass):
    if issubclass(_module, v2.Transform) and _module is not v2.Transform and _name not in TRANSFORMS.module_dict:
        TRANSFORMS.register_module(name=_name, module=_module)


def build_transforms(configs: list[dict]) -> v2.Transform:
    """Build a list of transform configs as one transform, see ``build_steps``."""
    return v2.Compose(build_steps(configs)) if configs else v2.Identity()


def build_steps(configs: Iterable[dict | v2.Transform]) -> list[v2.Transform]:
    """Build transform configs.

    A config may hold further ones under ``transforms``, as ``RandomApply`` and ``RandomChoice`` do, and names an
    interpolation by its word ('bilinear', 'bicubic', ...). In place of a config a built transform is taken as it is.
    """
    return [_build(cfg) for cfg in configs]


def _build(cfg: dict | v2.Transform) -> v2.Transform:
    if not isinstance(cfg, dict):
        return cfg
    cfg = dict(cfg)
    if "transforms" in cfg:
        cfg["transforms"] = [_build(inner) for inner in cfg["transforms"]]
    if isinstance(cfg.get("interpolation"), str):
        cfg["interpolation"] = InterpolationMode(cfg["interpolation"])
    return TRANSFORMS.build(cfg)


def to_uint8(image) -> torch.Tensor:
    """Return a PIL image or a uint8 tensor as a uint8 tensor ``(C, H, W)``; raise ``ValueError`` for anything else."""
    if not isinstance(image, torch.Tensor):
        return v2.functional.pil_to_tensor(image)
    if image.dtype != torch.uint8:
        raise ValueError(
            f"the transforms return {str(image.dtype).removeprefix('torch.')} images: leave out ToDtype and Normalize, "
            "images stay uint8 until the preprocessor normalises them on the device"
        )
    return image
