"""Build a layer from configs of ``LAYERS``."""

from typing import Any

from torch import nn

from ...registry import LAYERS
from ..arch import Arch
from ..layers import (
    CBSA,
    ISTA,
    MLP,
    MSSA,
    TSSA,
    AgentAttention,
    Block,
    OvercompleteISTA,
    SoftmaxAttention,
    drop_path_rates,
)

for _operator in (MSSA, SoftmaxAttention, AgentAttention, TSSA, CBSA, ISTA, OvercompleteISTA, MLP):
    LAYERS.register_module(module=_operator)


def build_block(embed_dim: int, num_heads: int, compress: dict | None, sparsify: dict | None, **options: Any) -> Block:
    """Build a layer.

    Args:
        embed_dim: d, passed to both operators.
        num_heads: K, passed to the compression.
        compress: config of ``LAYERS`` for the compression; None for no compression.
        sparsify: config of ``LAYERS`` for the sparsification; None for no sparsification.
        options: further arguments of ``Block``, such as ``residual`` and ``drop_path``.

    Raises:
        ValueError: an operator is neither a config nor None, or both are None.
    """
    for name, operator in (("compress", compress), ("sparsify", sparsify)):
        if operator is not None and not isinstance(operator, dict):
            raise ValueError(f"{name} must be a config such as dict(type='MSSA'), None or 'default', got {operator!r}")
    sizes = {"embed_dim": embed_dim}
    compression = None if compress is None else LAYERS.build({**sizes, "num_heads": num_heads, **compress})
    sparsification = None if sparsify is None else LAYERS.build({**sizes, **sparsify})
    return Block(embed_dim, compression, sparsification, **options)


def build_blocks(
    arch: Arch,
    compress: dict | str | None,
    sparsify: dict | str | None,
    default: tuple[dict, dict | None],
    drop_path: float = 0.0,
    drop_path_rule: str = "linear",
    **options: Any,
) -> nn.ModuleList:
    """Build all layers, with the drop-path rates of ``drop_path_rates``.

    If ``compress`` or ``sparsify`` is the string 'default', the operator is taken from the argument ``default``.
    """
    d, depth, num_heads = arch
    operators = [own if given == "default" else given for given, own in zip((compress, sparsify), default)]
    rates = drop_path_rates(drop_path, depth, drop_path_rule)
    return nn.ModuleList(build_block(d, num_heads, *operators, drop_path=rate, **options) for rate in rates)
