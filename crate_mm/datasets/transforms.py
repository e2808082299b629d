"""torchvision's transforms v2 in the ``TRANSFORMS`` registry, each under its own name."""

import inspect
import math
from collections.abc import Iterable

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from ..registry import TRANSFORMS
from .images import MAX_PIXELS, check_pixels, convert

MAX_OUTPUT_PIXELS = 2**25  # pixels that the output of a transform may have for any input: 0.1 GB in RGB


def check_output_size(image, height: int, width: int) -> None:
    """Raise ``UnreadableImageError`` if the output of a transform would be too large.

    The limit is ``MAX_OUTPUT_PIXELS`` or 16 times the input's pixels, whichever is larger, but at most ``MAX_PIXELS``.
    ``Resize(256)`` would enlarge an image of 6000 x 2 pixels to 200 million pixels.
    """
    input_pixels = math.prod(v2.functional.get_size(image))
    check_pixels(height, width, min(max(MAX_OUTPUT_PIXELS, 16 * input_pixels), MAX_PIXELS))


class _BoundedResize:
    """Limit a transform that sets the shorter side: the longer side of a thin image could become arbitrarily long."""

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
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""


@TRANSFORMS.register_module()
class RandomResize(_BoundedResize, v2.RandomResize):
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""


@TRANSFORMS.register_module()
class RandomShortestSize(_BoundedResize, v2.RandomShortestSize):
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""


class _BoundedGrowth:
    """Limit a transform that enlarges images."""

    def transform(self, inpt, params: dict):
        height, width = v2.functional.get_size(inpt)
        check_output_size(inpt, *self.largest(height, width))
        return super().transform(inpt, params)


@TRANSFORMS.register_module()
class RandomRotation(_BoundedGrowth, v2.RandomRotation):
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        side = math.ceil((height + width) / math.sqrt(2)) if self.expand else 0  # at 45 degrees
        return side, side


@TRANSFORMS.register_module()
class RandomZoomOut(_BoundedGrowth, v2.RandomZoomOut):
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        return math.ceil(height * self.side_range[1]), math.ceil(width * self.side_range[1])


def _padding(padding: int | list[int]) -> tuple[int, int]:
    """Return how much torchvision's ``padding`` adds to an image's height and width."""
    if isinstance(padding, int):
        return 2 * padding, 2 * padding
    left, top, right, bottom = padding if len(padding) == 4 else list(padding) * (4 // len(padding))
    return top + bottom, left + right


@TRANSFORMS.register_module()
class Pad(_BoundedGrowth, v2.Pad):
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        higher, wider = _padding(self.padding) if not isinstance(self.padding, dict) else (0, 0)
        return height + higher, width + wider


@TRANSFORMS.register_module()
class RandomCrop(_BoundedGrowth, v2.RandomCrop):
    """torchvision's transform that raises ``UnreadableImageError`` if its output would be too large."""

    def largest(self, height: int, width: int) -> tuple[int, int]:
        higher, wider = _padding(self.padding) if self.padding is not None else (0, 0)
        return max(height + higher, self.size[0]), max(width + wider, self.size[1])


@TRANSFORMS.register_module()
class RandomErasing(v2.RandomErasing):
    """torchvision's transform with ``value`` in 0..255, because images are uint8."""

    def __init__(self, p: float = 0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0, inplace: bool = False) -> None:
        if value == "random":
            raise ValueError(
                "RandomErasing: images are uint8 here, so value='random', normal noise, is not supported: use "
                "model.batch_augments=[dict(type='BatchRandomErasing')], which erases normalized images"
            )
        super().__init__(p, scale, ratio, value, inplace)


@TRANSFORMS.register_module()
class ConvertChannels(v2.Transform):
    """Convert images to gray (``channels=1``) or RGB (``channels=3``); images that have these channels are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"ConvertChannels: expected channels=1 (gray) or 3 (RGB), got {channels!r}")
        self.mode = "L" if channels == 1 else "RGB"

    def transform(self, inpt, params: dict):
        if isinstance(inpt, Image.Image):
            return inpt if inpt.mode == self.mode else convert(inpt, self.mode)
        functional = v2.functional
        return functional.rgb_to_grayscale(inpt) if self.mode == "L" else functional.grayscale_to_rgb(inpt)


for _name, _module in inspect.getmembers(v2, inspect.isclass):
    if issubclass(_module, v2.Transform) and _module is not v2.Transform and _name not in TRANSFORMS.module_dict:
        TRANSFORMS.register_module(name=_name, module=_module)


def build_transforms(configs: list[dict]) -> v2.Transform:
    """Build one transform from a list of transform configs, see ``build_steps``."""
    return v2.Compose(build_steps(configs)) if configs else v2.Identity()


def build_steps(configs: Iterable[dict | v2.Transform]) -> list[v2.Transform]:
    """Build transform configs.

    A config may contain other configs under ``transforms``, as ``RandomApply`` and ``RandomChoice`` do. An
    interpolation is given by name ('bilinear', 'bicubic', ...). Transforms that are already built are kept.
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
            f"the transforms return {str(image.dtype).removeprefix('torch.')} images: remove ToDtype and Normalize, "
            "because the preprocessor normalizes uint8 images on the device"
        )
    return image
