"""A layer of the family from configs of ``LAYERS``."""

from typing import Any

from ...registry import LAYERS
from ..layers import ISTA, MSSA, Block

for _step in (MSSA, ISTA):
    LAYERS.register_module(module=_step)


def build_block(embed_dim: int, num_heads: int, compress: dict, sparsify: dict, **options: Any) -> Block:
    """Build a layer.

    Args:
        embed_dim: d, which both steps get.
        num_heads: K, which the compression step gets.
        compress: config of ``LAYERS`` for the compression step.
        sparsify: config of ``LAYERS`` for the sparsification step.
        options: ``residual``, ``norm_eps`` and ``drop_path`` of ``Block``.
    """
    compression = LAYERS.build({"embed_dim": embed_dim, "num_heads": num_heads, **compress})
    return Block(embed_dim, compression, LAYERS.build({"embed_dim": embed_dim, **sparsify}), **options)
