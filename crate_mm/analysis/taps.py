"""Read what passes the taps of a model's layers, without a flag in its forward.

A layer says what it offers (``Layer``: ``taps()``, ``subspaces()``, ``maps()``, ...). CRATE has ``tap_w``, the tokens
projected on the subspaces, ``(B, N, K p)``, ``tap_half`` and ``tap_out``, which pass Z^{l+1/2} and Z^{l+1},
``(B, N, d)``, and ``tap_code``, the sparse code. ViT has ``tap_w``, its attention's input, ``tap_out`` and ``tap_act``,
its MLP's activations, ``(B, N, 4 d)``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.layers import Layer, TokenLayout
from ..models.tasks.base import backbone_of

TAPS = ("tap_w", "tap_half", "tap_out")


class LayerError(ValueError):
    """There is no such layer."""

    def __init__(self, layer: int, model: str, depth: int, first: int = 0) -> None:
        self.arguments = layer, model, depth
        shown = layer + first if layer >= 0 else layer
        super().__init__(f"layer {shown} is not there: {model} has {depth} layers, {first} to {depth - 1 + first}")


def find_layers(model: nn.Module, layers: list[int] | None = None) -> dict[int, Layer]:
    """Return the layers of a model's backbone by number, first layer 0.

    Args:
        model: a task, a backbone, or a further module with ``Layer`` modules, such as a decoder.
        layers: which layers, all if not given; negative numbers count from the last layer.

    Raises:
        ValueError: the model has no layer, or no such layer.
    """
    backbone = backbone_of(model)
    every = [m for m in model.modules() if isinstance(m, Layer)] if backbone is None else backbone.layers
    if not every:
        raise ValueError(f"{name_of(model)} has no layer that can be read: its layers must inherit from Layer")
    depth = len(every)
    if layers is None:
        return dict(enumerate(every))
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong:
        raise LayerError(wrong[0], name_of(model), depth)
    return {layer: every[layer] for layer in sorted({layer % depth for layer in layers})}


def layout_of(model: nn.Module, inputs: Tensor) -> TokenLayout | None:
    """Return the layout of a model's tokens for a batch of inputs; None where its tokens are not a grid."""
    backbone = backbone_of(model)
    return None if backbone is None else backbone.layout(inputs)


def _hook(read: Callable[[int, Tensor], None], layer: int) -> Callable:
    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        read(layer, out)  # what it returns is dropped: PyTorch would put it in the output's place

    return hook


@contextmanager
def read_taps(
    model: nn.Module, readers: dict[str, Callable[[int, Tensor], None]], layers: list[int] | None = None
) -> Iterator[None]:
    """Call a reader with (layer, tensor) for whatever passes its tap while the context is open.

    The hooks are gone when the context closes, after an exception too. What a reader does not keep is freed, so that
    memory does not grow with the number of images. A layer without the tap is passed over, if another one has it.

    Raises:
        ValueError: no layer has the tap, or as ``layer_indices``.
    """
    taps = {number: layer.taps() for number, layer in find_layers(model, layers).items()}
    for tap in readers:
        if not any(tap in has for has in taps.values()):
            known = sorted({name for has in taps.values() for name in has})
            raise ValueError(f"{name_of(model)} has no tap {tap!r}: it has {', '.join(known) or 'none at all'}")
    handles = []
    try:
        for layer, has in taps.items():
            handles += [
                has[tap].register_forward_hook(_hook(read, layer)) for tap, read in readers.items() if tap in has
            ]
        with torch.compiler.set_stance("force_eager"):  # compiled blocks would not call the hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture(
    model: nn.Module, taps: tuple[str, ...] = TAPS, layers: list[int] | None = None
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what passes the taps while the context is open, first layer first::

        with capture(model) as seen:
            model(images)
        seen["tap_half"][0]  # Z^{1/2} of the first layer, (B, N, d)

    Each forward pass of the model starts afresh. The tensors are those of the forward pass, part of its graph. The
    hooks are gone when the context closes, after an exception too.

    Args:
        model: one with taps.
        taps: which to read.
        layers: of which layers, all if not given.

    Raises:
        ValueError: the model has no such tap, or no such layer.
    """
    seen: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    readers = {tap: lambda _layer, out, v=values: v.append(out) for tap, values in seen.items()}
    with read_taps(model, readers, layers):
        handle = model.register_forward_pre_hook(lambda *_: [v.clear() for v in seen.values()] and None)
        try:
            yield seen
        finally:
            handle.remove()


def name_of(model: nn.Module) -> str:
    """The name of a model's backbone, or of the model."""
    backbone = backbone_of(model)
    return type(model if backbone is None else backbone).__name__
