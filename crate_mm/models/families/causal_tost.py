"""Causal ToST, a language model with running sums as statistics: its memory does not grow with the text.

Source: Wu et al., "Token Statistics Transformer", ICLR 2025, arXiv 2412.17810, and the authors' code,
github.com/RobinWu218/ToST, ``tost_lang``. Shapes: B texts, N tokens, d embedding dimensions.
"""

from types import SimpleNamespace
from typing import ClassVar

from ...registry import BACKBONES
from ..arch import Arch
from ..official import Argument, Official
from .causal import CONTEXT_LENGTH, NANOGPT_SHAPES, VOCAB_SIZE, CausalBackbone, language_model, layer_names, untie

CAUSAL_TOST_ARCHS: dict[str, Arch] = {
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "medium": Arch(embed_dim=1024, depth=24, num_heads=16),
    "large": Arch(embed_dim=1280, depth=36, num_heads=20),
}


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the model with these sizes (see ``Official``)."""
    return language_model("CausalToST", CAUSAL_TOST_ARCHS, s, **({"bias": True} if s.bias else {}))


OFFICIAL = Official(
    source="the ToST code for language",
    signs=("transformer.wte.weight", "transformer.h.0.attn.denom_bias"),
    key_map=layer_names(
        {
            "ln_1": "norm_compress",
            "ln_2": "norm_sparsify",
            "attn.c_attn": "compress.proj",
            "attn.c_proj": "compress.out",
            "attn.temp": "compress.temp",
            "attn.denom_bias": "compress.denom_bias",
            "mlp.c_fc": "sparsify.fc1",
            "mlp.c_proj": "sparsify.fc2",
            "gamma1": "gamma_compress",
            "gamma2": "gamma_sparsify",
        }
    ),
    shapes={**NANOGPT_SHAPES, "transformer.h.0.attn.denom_bias": "num_heads context_length _"},
    counts={"depth": r"transformer\.h\.(\d+)\."},
    flags={"bias": "transformer.h.0.mlp.c_fc.bias"},
    arguments={"num_heads": Argument(words="{} heads")},
    assumes="an exact GELU",
    model=official_model,
    unpack=untie,
)


@BACKBONES.register_module()
class CausalToST(CausalBackbone):
    """Causal ToST: token IDs ``(B, N)`` to tokens ``(B, N, d)``. A layer is a causal ``TSSA`` and an MLP.

    Args:
        arch: a name of ``CAUSAL_TOST_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        vocab_size: number of token IDs.
        context_length: largest N.
        layer_scale: initial factors of the residual branches.
        bias: whether linear maps and LayerNorms have a bias.

    Raises:
        ValueError: as for ``CausalBackbone``.
    """

    archs = CAUSAL_TOST_ARCHS
    official: ClassVar[Official] = OFFICIAL

    def __init__(
        self,
        arch: str | dict = "base",
        vocab_size: int = VOCAB_SIZE,
        context_length: int = CONTEXT_LENGTH,
        layer_scale: float = 1e-5,
        bias: bool = False,
    ) -> None:
        operators = {"type": "TSSA", "bias": bias, "context_length": context_length}, {"type": "MLP", "bias": bias}
        options = {"residual": True, "layer_scale": layer_scale, "norm_bias": bias}
        super().__init__(arch, vocab_size, context_length, ("default", "default"), operators, **options)
