"""Read tensors at the taps of a model's layers. The model's forward does not know the readers.

A ``Layer`` declares its ``taps()``, ``subspaces()``, ``maps()`` and so on. CRATE has ``tap_w`` (tokens projected onto
the subspaces, ``(B, N, K p)``), ``tap_in``, ``tap_half`` and ``tap_out`` (Z^l, Z^{l+1/2} and Z^{l+1}, ``(B, N, d)``),
and ``tap_code`` (the sparse code). ViT has ``tap_w`` (input of its attention), ``tap_out``, and ``tap_act``
(activations of its MLP, ``(B, N, 4 d)``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.backbone import image_spec
from ..models.layers import Layer, TokenLayout
from ..models.tasks.base import backbone_of

TAPS = ("tap_w", "tap_half", "tap_out")


class LayerError(ValueError):
    """The model has no layer of this number."""

    def __init__(self, layer: int, model: str, depth: int, first: int = 0) -> None:
        self.arguments = layer, model, depth
        number = layer + first if layer >= 0 else layer
        super().__init__(f"layer {number} does not exist: {model} has {depth} layers, {first} to {depth - 1 + first}")


def find_layers(model: nn.Module, layers: list[int] | None = None) -> dict[int, Layer]:
    """Return the layers of a model's backbone by number, first layer 0.

    Args:
        model: a task, a backbone, or another module with ``Layer`` modules, such as a decoder.
        layers: numbers of the layers (default: all); negative numbers count from the last layer.

    Raises:
        ValueError: the model has no ``Layer``.
        LayerError: the model has no layer of one of these numbers.
    """
    backbone = backbone_of(model)
    all_layers = [m for m in model.modules() if isinstance(m, Layer)] if backbone is None else backbone.layers
    if not all_layers:
        raise ValueError(f"{name_of(model)} has no readable layers: its layers must inherit from Layer")
    depth = len(all_layers)
    if layers is None:
        return dict(enumerate(all_layers))
    missing = [layer for layer in layers if not -depth <= layer < depth]
    if missing:
        raise LayerError(missing[0], name_of(model), depth)
    return {layer: all_layers[layer] for layer in sorted({layer % depth for layer in layers})}


def layout_of(model: nn.Module, inputs: Tensor) -> TokenLayout | None:
    """Return the layout of a model's tokens for a batch of inputs; None if its tokens form no grid."""
    backbone = backbone_of(model)
    return None if backbone is None else backbone.layout(inputs)


def check_no_text(model: nn.Module) -> None:
    """Raise ``ValueError`` if a model's backbone declares inputs other than images."""
    backbone = backbone_of(model)
    if backbone is not None and backbone.input_spec is not None:
        image_spec(backbone)


def _hook(read: Callable[[int, Tensor], None], layer: int) -> Callable:
    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        read(layer, out)  # drop the return value: PyTorch would replace the module's output with it

    return hook


@contextmanager
def read_taps(
    model: nn.Module, readers: dict[str, Callable[[int, Tensor], None]], layers: list[int] | None = None
) -> Iterator[None]:
    """Call each reader with (layer, tensor) for every tensor at the reader's tap while the context is open.

    The hooks are removed when the context closes, also after an exception. Tensors that a reader does not store are
    freed, so memory does not grow with the number of images. Layers without the tap are skipped.

    Raises:
        ValueError: no layer has the tap, or as in ``find_layers``.
    """
    taps = {number: layer.taps() for number, layer in find_layers(model, layers).items()}
    for tap in readers:
        if not any(tap in modules for modules in taps.values()):
            tap_names = sorted({name for modules in taps.values() for name in modules})
            raise ValueError(f"{name_of(model)} has no tap {tap!r}: its taps are {', '.join(tap_names) or 'none'}")
    handles = []
    try:
        for layer, modules in taps.items():
            handles += [
                modules[tap].register_forward_hook(_hook(read, layer))
                for tap, read in readers.items()
                if tap in modules
            ]
        with torch.compiler.set_stance("force_eager"):  # compiled blocks do not call hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture(
    model: nn.Module, taps: tuple[str, ...] = TAPS, layers: list[int] | None = None
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the tensors at the taps while the context is open, first layer first::

        with capture(model) as tensors:
            model(images)
        tensors["tap_half"][0]  # Z^{1/2} of the first layer, (B, N, d)

    Each forward pass replaces the tensors of the previous pass. The tensors are part of the autograd graph. The hooks
    are removed when the context closes, also after an exception.

    Args:
        model: a model with taps.
        taps: taps to read.
        layers: numbers of the layers (default: all).

    Raises:
        ValueError: as in ``read_taps``.
    """
    captured: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    readers = {tap: lambda _layer, out, v=values: v.append(out) for tap, values in captured.items()}
    with read_taps(model, readers, layers):
        handle = model.register_forward_pre_hook(lambda *_: [v.clear() for v in captured.values()] and None)
        try:
            yield captured
        finally:
            handle.remove()


def name_of(model: nn.Module) -> str:
    """Return the class name of a model's backbone, or of the model."""
    backbone = backbone_of(model)
    return type(model if backbone is None else backbone).__name__
