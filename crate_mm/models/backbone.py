"""The contract of a backbone: what tasks, figures, checkpoints and tools ask of it.

A backbone inherits ``Backbone`` and sets ``embed_dim``. Everything else has a default that says "not defined here", and
a reader that needs it refuses in a sentence. No reader looks for an attribute by its name.

Shapes: B samples, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import BACKBONES
from .arch import Sizes
from .layers import Layer, TokenLayout
from .official import Official


class InputSpec(NamedTuple):
    """One sample of a backbone's inputs.

    Attributes:
        channels: C of images; None for sequences, such as token ids.
        size: ``(H, W)`` in pixels that the model is built for; ``(length,)`` of sequences.
        any_size: whether other sizes are accepted, if they are whole numbers of patches.
        dtype: of the inputs.
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
        grid: (rows, columns) of patches that it is for.
        resize: ``resize(embedding, old_grid, new_grid)`` in place of interpolation; None for interpolation.
    """

    grid: tuple[int, int]
    resize: Callable[[Tensor, tuple[int, int], tuple[int, int]], Tensor] | None = None


class PatchKernel(NamedTuple):
    """A tensor with one element per pixel and channel of a patch, which a transfer resizes to another patch size.

    Attributes:
        order: its dimensions, such as 'd C h w', 'd (h w C)' or '(h w C)'.
        height, width: of a patch, in pixels.
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
        sizes: the named sizes of the family, from which ``get_model`` takes its names; None for none.
        head_settings: arguments of a new ``LinearHead`` on the tokens that differ from the head's defaults, such as
            ``{"norm": False}`` where the tokens have passed a LayerNorm.
        channels_last: whether images are accepted in PyTorch's channels-last memory order without a copy.
        official: the declaration of other code's weights for it, which opening a checkpoint translates.
        stem: names of the modules and parameters before the first layer, which ``layer_decay`` trains most slowly;
            empty if not declared.
        original_names: for a wrapper of another library's model, that library's weight names, each with the names that
            the tensor has here.
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
        # A property would hide a submodule of its name: reading it back would give something else.
        if name in self.CONTRACT:
            raise AttributeError(
                f"{type(self).__name__}.{name} is defined by crate_mm.models.Backbone: give the attribute another "
                f"name, such as blocks for a list of layers, or define {name} in the class"
            )
        super().__setattr__(name, value)

    @property
    def input_spec(self) -> InputSpec | None:
        """What one sample must be; None if the backbone does not say."""
        return None

    def layout(self, inputs: Tensor) -> TokenLayout | None:
        """Return which tokens in the layers are patches, and on which grid; None if the tokens are not a grid.

        Args:
            inputs: a batch. Only its shape matters.
        """
        return None

    @property
    def layers(self) -> list[Layer]:
        """The layers, first to last: those that are measured, drawn, compiled and recomputed."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def resizable(self) -> dict[str, Positions | PatchKernel]:
        """Return the tensors that depend on the size of the image or of the patch, by their names in the state dict."""
        return {}

    def fuse(self) -> "Backbone":
        """Compute once what depends on the weights alone, for inference. A fused model refuses to train."""
        for layer in self.layers:
            layer.fuse()
        return self

    def original_classifier(self) -> str:
        """Return the other library's name of its classifier, if it takes the vector that a head pools here by 'cls'."""
        return ""


def registered_backbones() -> dict[str, type[Backbone]]:
    """Return the registered backbones by name."""
    BACKBONES.names()  # imports the package's own
    return {name: kind for name, kind in BACKBONES.module_dict.items() if issubclass(kind, Backbone)}


def image_spec(backbone: Backbone) -> InputSpec:
    """Return what images a backbone takes.

    Raises:
        ValueError: it takes no images, or does not say which.
    """
    spec, name = backbone.input_spec, type(backbone).__name__
    if spec is None:
        raise ValueError(
            f"{name} does not tell its image size: let its input_spec return InputSpec(channels, (height, width))"
        )
    if not spec.is_image:
        shape = ", ".join(map(str, spec.shape))
        raise ValueError(f"{name} takes no images: its inputs are {spec.dtype} of shape (B, {shape})")
    return spec


def check_backbone_contract(module: nn.Module) -> None:
    """Raise ``ValueError`` that names what a backbone lacks, unless it keeps the contract."""
    name = type(module).__name__
    if not isinstance(module, Backbone):
        raise ValueError(
            f"{name} is no backbone: let it inherit from crate_mm.models.Backbone in place of nn.Module, set embed_dim "
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
