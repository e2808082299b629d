"""Read what passes a model's taps, without a flag in its forward.

A tap is an identity module with a public name, one in each layer. CRATE has ``tap_w``, which passes the tokens
projected on the subspaces, ``(B, N, K p)``, and ``tap_half`` and ``tap_out``, which pass Z^{l+1/2} and Z^{l+1},
``(B, N, d)``. ViT has ``tap_out`` and ``tap_act``, which passes the MLP's activations, ``(B, N, 4 d)``. Any model that
names its taps so can be read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TAPS = ("tap_w", "tap_half", "tap_out")


class LayerError(ValueError):
    """There is no such layer."""

    def __init__(self, layer: int, model: str, depth: int, first: int = 0) -> None:
        self.arguments = layer, model, depth
        shown = layer + first if layer >= 0 else layer
        super().__init__(f"layer {shown} is not there: {model} has {depth} layers, {first} to {depth - 1 + first}")


def find_taps(model: nn.Module, tap: str, layers: list[int] | None = None) -> dict[int, nn.Module]:
    """The modules of a tap by layer, first layer 0; of the layers asked for only, negative ones counted from the last.

    Raises:
        ValueError: the model has no such tap, or no such layer.
    """
    modules = [module for name, module in model.named_modules() if name.rpartition(".")[2] == tap]
    if not modules:
        known = sorted({n.rpartition(".")[2] for n, _ in model.named_modules() if ".tap_" in f".{n}"})
        has = f"it has {', '.join(known)}" if known else "it has none at all"
        raise ValueError(f"{_name(model)} has no tap {tap!r}: {has}")
    depth = len(modules)
    if layers is None:
        return dict(enumerate(modules))
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong:
        raise LayerError(wrong[0], _name(model), depth)
    return {layer: modules[layer] for layer in sorted({layer % depth for layer in layers})}


def _hook(read: Callable[[int, Tensor], None], layer: int) -> Callable:
    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        read(layer, out)  # what it returns is dropped: PyTorch would put it in the output's place

    return hook


@contextmanager
def on_taps(
    model: nn.Module, readers: dict[str, Callable[[int, Tensor], None]], layers: list[int] | None = None
) -> Iterator[None]:
    """Call a reader with (layer, tensor) for whatever passes its tap while the context is open.

    The hooks are gone when the context closes, after an exception too. What a reader does not keep is freed, so that
    memory does not grow with the number of images.

    Raises:
        ValueError: as ``find_taps``.
    """
    found = {tap: find_taps(model, tap, layers) for tap in readers}
    handles = []
    try:
        for tap, read in readers.items():
            for layer, module in found[tap].items():
                handles.append(module.register_forward_hook(_hook(read, layer)))
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
    with on_taps(model, readers, layers):
        handle = model.register_forward_pre_hook(lambda *_: [v.clear() for v in seen.values()] and None)
        try:
            yield seen
        finally:
            handle.remove()


def _name(model: nn.Module) -> str:
    return type(getattr(model, "backbone", model)).__name__
