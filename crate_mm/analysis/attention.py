"""Where a layer's CLS token looks. Shapes: B images, K heads, N patches."""

import torch
from torch import Tensor, nn

from ..models.layers import Layer, Map
from ..models.tasks.base import Task
from ..models.tasks.heads import POOLS, Head
from .taps import find_layers, layout_of, name_of, read_taps


def pooling(model: nn.Module) -> str | None:
    """How a model's head pools the tokens, 'cls' or 'mean'; None without a head, or where its ``pool`` is neither.

    It says whether the CLS token's attention is what the prediction is made from.
    """
    pool = model.head.pool if isinstance(model, Task) and isinstance(model.head, Head) else None
    return pool if pool in POOLS else None


@torch.no_grad()
def cls_attention(model: nn.Module, images: Tensor, layers: list[int] | None = None) -> dict[int, Tensor]:
    """The CLS token's attention to the patches, ``{layer: (B, K, N)}``, first layer 0.

    Each layer says what its attention is: CRATE that of Eq. (11), ``softmax(w_k w_k^T / sqrt(p))``, ViT its own. A row
    sums to 1 with the CLS token's attention to itself, which is left out.

    Args:
        model: one whose tokens begin with a CLS token.
        images: normalised images ``(B, C, H, W)``.
        layers: which layers, all if not given; negative ones count from the last.

    Raises:
        ValueError: the model has no such layer, or a layer has no attention map, or the first token is no CLS token, or
            may not be: the backbone has no ``layout``.
    """
    maps: dict[int, Tensor] = {}
    read_layers = find_layers(model, layers)
    layout = layout_of(model, images)
    reasons: list[str] = []

    def read(number: int, w: Tensor) -> None:
        attention = read_layers[number].attention(w, layout)
        if attention is None:
            reasons.append(no_attention(read_layers[number], read_layers[number].maps(w, layout)))
        else:
            maps[number] = attention[:, :, 0, 1:]

    if any("tap_w" in layer.taps() for layer in read_layers.values()):
        with read_taps(model, {"tap_w": read}, layers):
            model(images)
    if reasons or not maps:
        reason = reasons[0] if reasons else no_attention(next(iter(read_layers.values())))
        raise ValueError(f"{name_of(model)} has no attention map: {reason}")
    if layout is None:
        raise ValueError(
            f"{name_of(model)} does not say whether its first token is a CLS token: let the backbone's layout(inputs) "
            "return TokenLayout(prefix=1, rows, columns)"
        )
    if layout.prefix != 1:
        raise ValueError(f"{name_of(model)} has no CLS token in its layers, whose attention could be shown")
    return dict(sorted(maps.items()))


def no_attention(layer: Layer, maps: dict[str, Map] | None = None) -> str:
    """Return the reason why a layer has no attention map between tokens; ``maps`` are those that it has."""
    operator = layer if layer.compress is None else layer.compress
    if maps:
        name, other = next(iter(maps.items()))
        return f"the map {name!r} of its {type(operator).__name__} is of {other.rows} x {other.columns}, not of tokens"
    return f"its {type(operator).__name__} computes no attention matrix"
