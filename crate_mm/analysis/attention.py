"""Attention of the CLS token. Shapes: B images, K heads, N patches."""

import torch
from torch import Tensor, nn

from ..models.layers import Layer, Map
from ..models.tasks.base import Task
from ..models.tasks.heads import POOLS, Head
from .taps import check_no_text, find_layers, layout_of, name_of, read_taps


def pooling(model: nn.Module) -> str | None:
    """Return the pooling of a model's head, 'cls' or 'mean'; None without a head or for any other pooling.

    The CLS token's attention explains a prediction only with 'cls'.
    """
    pool = model.head.pool if isinstance(model, Task) and isinstance(model.head, Head) else None
    return pool if pool in POOLS else None


@torch.no_grad()
def cls_attention(model: nn.Module, images: Tensor, layers: list[int] | None = None) -> dict[int, Tensor]:
    """Return the CLS token's attention to the patches, ``{layer: (B, K, N)}``, first layer 0.

    Each layer defines its attention. CRATE uses Eq. (11), ``softmax(w_k w_k^T / sqrt(p))``. ViT uses its own formula.
    CBSA uses its similarity A^T A, with each row divided by its sum. The CLS token's attention to itself is omitted, so
    rows sum to less than 1.

    Args:
        model: a model whose tokens begin with a CLS token.
        images: normalized images ``(B, C, H, W)``.
        layers: numbers of the layers (default: all); negative numbers count from the last layer.

    Raises:
        ValueError: a layer does not exist or has no attention map, or the backbone's ``layout`` does not declare a CLS
            token.
    """
    maps: dict[int, Tensor] = {}
    selected = find_layers(model, layers)
    layout = layout_of(model, images)
    reasons: list[str] = []

    def read(number: int, w: Tensor) -> None:
        attention = selected[number].attention(w, layout)
        if attention is None:
            reasons.append(no_attention(selected[number], selected[number].maps(w, layout)))
        else:
            maps[number] = attention[:, :, 0, 1:]

    if any("tap_w" in layer.taps() for layer in selected.values()):
        with read_taps(model, {"tap_w": read}, layers):
            model(images)
    if reasons or not maps:
        reason = reasons[0] if reasons else no_attention(next(iter(selected.values())))
        raise ValueError(f"{name_of(model)} has no attention map: {reason}")
    if layout is None:
        check_no_text(model)
        raise ValueError(
            f"{name_of(model)} does not define whether its first token is a CLS token: let the backbone's "
            "layout(inputs) return TokenLayout(prefix=1, rows, columns)"
        )
    if layout.prefix > 1:
        raise ValueError(
            f"{name_of(model)} has {layout.prefix} tokens before the patches, such as registers: this figure "
            "accepts only a CLS token"
        )
    if layout.prefix != 1:
        raise ValueError(f"{name_of(model)} has no CLS token in its layers: its attention is not defined")
    return dict(sorted(maps.items()))


def no_attention(layer: Layer, maps: dict[str, Map] | None = None) -> str:
    """Return the reason why a layer has no attention map between tokens; ``maps`` are the layer's maps."""
    operator = layer if layer.compress is None else layer.compress
    if maps:
        name, other = next(iter(maps.items()))
        return f"the map {name!r} of {type(operator).__name__} is {other.rows} x {other.columns}, not tokens x tokens"
    return f"its {type(operator).__name__} computes no attention matrix"
