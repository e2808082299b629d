"""Where a layer's CLS token looks. Shapes: B images, K heads, N patches, p the dimension of a head."""

import torch
from einops import rearrange
from torch import Tensor, nn

from .capture import find_taps, on_taps


@torch.no_grad()
def cls_attention(model: nn.Module, images: Tensor, layers: list[int] | None = None) -> dict[int, Tensor]:
    """The CLS token's attention to the patches, ``{layer: (B, K, N)}``, first layer 0.

    For CRATE that of Eq. (11), ``softmax(w_k w_k^T / sqrt(p))``, of which the CLS token's row is taken; for a model
    with ``torch.nn.MultiheadAttention``, as ViT, that module's weights. A row sums to 1 with the CLS token's attention
    to itself, which is left out.

    Args:
        model: one with taps whose tokens begin with a CLS token.
        images: normalised images ``(B, C, H, W)``.
        layers: which layers, all if not given; negative ones count from the last.

    Raises:
        ValueError: the model has no such layer, or no attention that is known.
    """
    found: dict[int, Tensor] = {}
    depth = len(find_taps(model, "tap_out"))
    wanted = set(find_taps(model, "tap_out", layers))
    mssa = [module for module in model.modules() if hasattr(module, "tap_w")]
    modules = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    if len(mssa) == depth:

        def read(layer: int, w: Tensor) -> None:
            w_BKNp = rearrange(w, "B N (K p) -> B K N p", K=mssa[layer].num_heads)
            scores = w_BKNp[:, :, :1] @ w_BKNp.mT / w_BKNp.shape[-1] ** 0.5
            found[layer] = scores.softmax(-1)[:, :, 0, 1:]

        with on_taps(model, {"tap_w": read}, sorted(wanted)):
            model(images)
    elif len(modules) == depth:

        def ask(layer: int):
            def hook(module: nn.MultiheadAttention, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0]
                weights = module.forward(x, x, x, need_weights=True, average_attn_weights=False)[1]
                found[layer] = weights[:, :, 0, 1:]

            return hook

        handles = [module.register_forward_pre_hook(ask(i)) for i, module in enumerate(modules) if i in wanted]
        try:
            model(images)
        finally:
            for handle in handles:
                handle.remove()
    else:
        raise ValueError(f"{type(getattr(model, 'backbone', model)).__name__} has no attention that can be read")
    return dict(sorted(found.items()))
