"""The contract between a backbone and tasks, figures, checkpoints and tools.

A backbone inherits ``Backbone`` and sets ``embed_dim``. Every other attribute has a default that means "not defined".
Code that needs an undefined attribute raises an error. No code searches a backbone for attributes by name.

Shapes: B samples, C channels, H x W pixels, N patches, d embedding dimensions.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import BACKBONES
from .arch import Sizes
from .layers import Layer, TokenLayout
from .official import Official


class InputSpec(NamedTuple):
    """Shape and dtype of one input sample.

    Attributes:
        channels: C of images; None for sequences, such as token ids.
        size: size that the model is built for: ``(H, W)`` in pixels, or ``(length,)`` of a sequence.
        any_size: whether other sizes are accepted: multiples of the patch size for images, shorter sequences.
        dtype: dtype of the inputs.
    """

    channels: int | None
    size: tuple[int, ...]
    any_size: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def is_image(self) -> bool:
        return self.channels is not None and len(self.size) == 2

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: ``(C, H, W)`` or ``(length,)``."""
        return self.size if self.channels is None else (self.channels, *self.size)


class Positions(NamedTuple):
    """A position embedding ``(1, 1 + N, d)`` that a transfer resizes to another grid.

    Attributes:
        grid: (rows, columns) of patches.
        resize: ``resize(embedding, old_grid, new_grid)``; None for interpolation.
    """

    grid: tuple[int, int]
    resize: Callable[[Tensor, tuple[int, int], tuple[int, int]], Tensor] | None = None


class PatchKernel(NamedTuple):
    """A tensor with one element per pixel and channel of a patch, which a transfer resizes to another patch size.

    Attributes:
        order: dimensions of the tensor, such as 'd C h w', 'd (h w C)' or '(h w C)'.
        height: patch height in pixels.
        width: patch width in pixels.
        channels: C.
    """

    order: str
    height: int
    width: int
    channels: int


class Backbone(nn.Module):
    """A model from inputs to tokens, ``(B, C, H, W) -> (B, 1 + N, d)`` for images.

    Attributes:
        embed_dim: d.
        sizes: the named sizes of the family, which define the names of ``get_model``; None for no named sizes.
        head_settings: arguments of a new ``LinearHead`` on the tokens that differ from the head's defaults, such as
            ``{"norm": False}`` where the tokens have passed a LayerNorm.
        channels_last: whether images are accepted in PyTorch's channels-last memory order without a copy.
        official: declaration of third-party weights, which are translated when a checkpoint is opened.
        stem: names of the modules and parameters before the first layer, which get the lowest learning rate under
            ``layer_decay``; empty if not declared.
        original_names: for a wrapper of another library's model: weight name in that library -> names in the wrapper.
    """

    CONTRACT: ClassVar[tuple[str, ...]] = ("input_spec", "layout", "layers", "resizable")

    embed_dim: int
    sizes: ClassVar[Sizes | None] = None
    head_settings: ClassVar[dict[str, Any]] = {}
    channels_last: ClassVar[bool] = False
    official: ClassVar[Official | None] = None
    stem: tuple[str, ...] | list[str] = ()
    original_names: dict[str, list[str]] = {}  # noqa: RUF012  read only; an instance may set its own

    def __setattr__(self, name: str, value: Any) -> None:
        # These properties would hide a submodule of the same name.
        if name in self.CONTRACT:
            raise AttributeError(
                f"{type(self).__name__}.{name} is defined by crate_mm.models.Backbone: give the attribute another "
                f"name, such as blocks for a list of layers, or define {name} in the class"
            )
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tokens; an error on inputs of another size than declared names both sizes."""
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            spec, inputs = self.input_spec, args[0] if args else None
            if spec is None or not isinstance(inputs, Tensor) or isinstance(error, torch.OutOfMemoryError):
                raise
            if tuple(inputs.shape[1:]) == spec.shape or (spec.any_size and inputs.shape[1] == spec.channels):
                raise
            shapes = [", ".join(map(str, shape)) for shape in (spec.shape, inputs.shape[1:])]
            raise ValueError(
                f"{type(self).__name__} takes inputs of shape (B, {shapes[0]}), got (B, {shapes[1]}), on which it "
                f"fails: {str(error).partition(chr(10))[0]}"
            ) from error

    @property
    def input_spec(self) -> InputSpec | None:
        """Shape and dtype of one sample; None if not declared."""
        return None

    def layout(self, inputs: Tensor) -> TokenLayout | None:
        """Return the place of the patches among the layers' tokens, and their grid; None if there is no grid.

        Args:
            inputs: a batch. Only its shape matters.
        """
        return None

    @property
    def layers(self) -> list[Layer]:
        """The layers, first to last, for analysis, compilation and activation checkpointing."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def resizable(self) -> dict[str, Positions | PatchKernel]:
        """Return the tensors that depend on the image or patch size, by state-dict name."""
        return {}

    def interpolate_positions(self) -> bool:
        """Accept images of other sizes from now on, by interpolating positions; return whether this is supported."""
        spec = self.input_spec
        return spec is not None and spec.is_image and spec.any_size

    def fuse(self) -> "Backbone":
        """Precompute terms that depend only on the weights. A fused model is for inference only."""
        for layer in self.layers:
            layer.fuse()
        return self

    def original_classifier(self) -> str:
        """Return the classifier's name in the wrapped library if the classifier reads the CLS token, else ''."""
        return ""


def registered_backbones() -> dict[str, type[Backbone]]:
    """Return the registered backbones by name."""
    BACKBONES.names()  # imports crate_mm.models
    return {name: kind for name, kind in BACKBONES.module_dict.items() if issubclass(kind, Backbone)}


def image_spec(backbone: Backbone) -> InputSpec:
    """Return the ``InputSpec`` of a backbone of images.

    Raises:
        ValueError: the inputs are not images, or the backbone declares no ``input_spec``.
    """
    spec, name = backbone.input_spec, type(backbone).__name__
    if spec is None:
        raise ValueError(
            f"{name} does not define its image size: return InputSpec(channels, (height, width)) from input_spec"
        )
    if not spec.is_image:
        shape = ", ".join(map(str, spec.shape))
        raise ValueError(f"{name} takes no images: its inputs are {spec.dtype} of shape (B, {shape})")
    return spec


def patch_grid_of(backbone: Backbone) -> tuple[int, int]:
    """Return rows and columns of the patches of an image of the declared size.

    Raises:
        ValueError: the backbone takes no images, or has no grid of patches.
    """
    layout = backbone.layout(torch.empty(1, *image_spec(backbone).shape, device="meta"))
    if layout is None:
        raise ValueError(f"{type(backbone).__name__} does not define its grid of patches: its layout is None")
    return layout.rows, layout.columns


def require_masking(backbone: Backbone) -> None:
    """Raise ``ValueError`` unless a backbone accepts ``(images, mask, mask_token)``, as ``PatchBackbone`` does."""
    if not {"mask", "mask_token"} <= inspect.signature(backbone.forward).parameters.keys():
        raise ValueError(f"{type(backbone).__name__} cannot mask patches: its forward has no mask and mask_token")


def check_backbone_contract(module: nn.Module) -> None:
    """Raise ``ValueError`` unless a module meets the contract; the message names the violation."""
    name = type(module).__name__
    if not isinstance(module, Backbone):
        raise ValueError(
            f"{name} is no backbone: let it inherit from crate_mm.models.Backbone instead of nn.Module, set embed_dim "
            "and define forward(inputs) -> tokens (B, N, embed_dim)"
        )
    try:
        embed_dim = module.embed_dim
    except AttributeError:
        raise ValueError(f"{name} lacks embed_dim, the number of channels of its tokens: set it in __init__") from None
    if not isinstance(embed_dim, int) or isinstance(embed_dim, bool) or embed_dim < 1:
        raise ValueError(f"{name}.embed_dim must be a positive integer, got {embed_dim!r}")
    spec = module.input_spec
    if spec is not None and not isinstance(spec, InputSpec):
        raise ValueError(f"{name}.input_spec must be an InputSpec or None, got {spec!r}")
