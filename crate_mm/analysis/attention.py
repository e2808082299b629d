"""Where a layer's CLS token looks. Shapes: B images, K heads, N patches."""

import torch
from torch import Tensor, nn

from ..models.tasks.heads import POOLS
from .taps import name_of, on_taps, steps


def pooling(model: nn.Module) -> str | None:
    """How a model's head pools the tokens, 'cls' or 'mean'; None without a head, or where its ``pool`` is neither.

    It says whether the CLS token's attention is what the prediction is made from.
    """
    pool = getattr(getattr(model, "head", None), "pool", None)
    return pool if isinstance(pool, str) and pool in POOLS else None


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
            may not be: the backbone has no ``patch_tokens``.
    """
    found: dict[int, Tensor] = {}
    wanted = steps(model, layers)
    without: list[int] = []

    def read(layer: int, w: Tensor) -> None:
        attention = wanted[layer].attention(w)
        if attention is None:
            without.append(layer)
        else:
            found[layer] = attention[:, :, 0, 1:]

    if any("tap_w" in step.taps() for step in wanted.values()):
        with on_taps(model, {"tap_w": read}, layers):
            model(images)
    if without or not found:
        layer = wanted[without[0]] if without else next(iter(wanted.values()))
        kind = type(getattr(layer, "compress", layer)).__name__
        raise ValueError(f"{name_of(model)} has no attention map: its {kind} computes no attention matrix")
    tokens = getattr(getattr(model, "backbone", model), "patch_tokens", None)
    if tokens is None:
        raise ValueError(
            f"{name_of(model)} does not say whether its first token is a CLS token: give the backbone patch_tokens, "
            "PatchTokens(first=1, rows, columns)"
        )
    if tokens.first != 1:
        raise ValueError(f"{name_of(model)} has no CLS token in its layers, whose attention could be shown")
    return dict(sorted(found.items()))
