"""A layer of the family from configs of ``LAYERS``."""

from typing import Any

from ...registry import LAYERS
from ..layers import ISTA, MLP, MSSA, TSSA, Block, OvercompleteISTA, SoftmaxAttention

for _step in (MSSA, SoftmaxAttention, TSSA, ISTA, OvercompleteISTA, MLP):
    LAYERS.register_module(module=_step)


def build_block(embed_dim: int, num_heads: int, compress: dict, sparsify: dict, **options: Any) -> Block:
    """Build a layer.

    Args:
        embed_dim: d, which both steps get.
        num_heads: K, which the compression step gets.
        compress: config of ``LAYERS`` for the compression step.
        sparsify: config of ``LAYERS`` for the sparsification step.
        options: ``residual``, ``norm_eps``, ``drop_path`` and ``layer_scale`` of ``Block``.
    """
    compression = LAYERS.build({"embed_dim": embed_dim, "num_heads": num_heads, **compress})
    return Block(embed_dim, compression, LAYERS.build({"embed_dim": embed_dim, **sparsify}), **options)
