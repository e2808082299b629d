"""Causal CRATE, the language model with CRATE's layers: a causal MSSA and an unchanged ISTA.

Source: crate-lm/crate-lm, ``crate.py`` and ``crate_overcomplete.py``, by a co-author of CRATE's journal paper; Bai and
Ma, "Improving Neuron-level Interpretability with White-box Language Models", CPAL 2025, arXiv 2410.16443.
Shapes: B texts, N tokens, d embedding dimensions.
"""

from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor

from ...registry import BACKBONES
from ..arch import Arch
from ..official import ISTA_ARGUMENTS, Argument, Official
from .causal import CONTEXT_LENGTH, NANOGPT_SHAPES, VOCAB_SIZE, CausalBackbone, language_model, layer_names, untie

# The code names "medium", "large" and "xl" but gives no sizes. "1l" is the one-layer model of its training script.
CAUSAL_CRATE_ARCHS: dict[str, Arch] = {
    "1l": Arch(embed_dim=512, depth=1, num_heads=4),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "medium": Arch(embed_dim=1024, depth=24, num_heads=16),
    "large": Arch(embed_dim=1280, depth=36, num_heads=20),
    "xl": Arch(embed_dim=1600, depth=48, num_heads=25),
}


def unpack(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Return the weights with overcomplete dictionaries as d x 4 d; the official code has 4 d x d."""
    weights, unused, sizes = untie(weights)
    for name, value in weights.items():
        if name.endswith(".ista.weight") and value.ndim == 2 and value.shape[0] > value.shape[1]:
            weights[name] = value.mT
    return weights, unused, sizes


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the model with these sizes (see ``Official``)."""
    options = {"overcomplete": True} if s.atoms != s.embed_dim else {}
    return language_model("CausalCRATE", CAUSAL_CRATE_ARCHS, s, **options, **s.options)


OFFICIAL = Official(
    source="the code of causal CRATE",
    signs=("transformer.wte.weight", "transformer.h.0.prenorm_1.weight", "transformer.h.0.ista.weight"),
    key_map=layer_names(
        {
            "prenorm_1": "norm_compress",
            "prenorm_2": "norm_sparsify",
            "attn.c_attn": "compress.proj",
            "attn.c_proj": "compress.out",
            "ista.weight": "sparsify.dictionary",
        }
    ),
    shapes={**NANOGPT_SHAPES, "transformer.h.0.ista.weight": "embed_dim atoms"},
    counts={"depth": r"transformer\.h\.(\d+)\."},
    arguments={"num_heads": Argument(words="{} heads"), **ISTA_ARGUMENTS},
    assumes="LayerNorms with epsilon 1e-5",
    model=official_model,
    unlike="several numbers of heads fit a width of {embed_dim}",
    unpack=unpack,
)


@BACKBONES.register_module()
class CausalCRATE(CausalBackbone):
    """Causal CRATE: token IDs ``(B, N)`` to tokens ``(B, N, d)``.

    The form with a square dictionary has no LayerNorm after the layers. In the ``overcomplete`` form, a layer ends with
    two steps of ISTA with a dictionary of 4 d atoms. The same dictionary decodes the result. A LayerNorm follows the
    layers.

    Args:
        arch: a name of ``CAUSAL_CRATE_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        vocab_size: number of token IDs.
        context_length: largest N.
        overcomplete: whether the dictionary is overcomplete.
        ista_step_size, ista_lambda: eta and lambda of ISTA.
        compress: config of ``LAYERS`` to replace the causal ``MSSA``; None for no compression.
        sparsify: config of ``LAYERS`` to replace the sparsification; None for no sparsification.

    Raises:
        ValueError: as for ``CausalBackbone``.
    """

    archs = CAUSAL_CRATE_ARCHS
    official: ClassVar[Official] = OFFICIAL

    def __init__(
        self,
        arch: str | dict = "base",
        vocab_size: int = VOCAB_SIZE,
        context_length: int = CONTEXT_LENGTH,
        overcomplete: bool = False,
        ista_step_size: float = 0.1,
        ista_lambda: float = 0.1,
        compress: dict | str | None = "default",
        sparsify: dict | str | None = "default",
    ) -> None:
        ista = {"type": "ISTA", "step_size": ista_step_size, "lambd": ista_lambda}
        if overcomplete:
            ista |= {"type": "OvercompleteISTA", "decoupled": False}
        default = ({"type": "MSSA", "causal": True}, ista)
        super().__init__(arch, vocab_size, context_length, (compress, sparsify), default, final_norm=overcomplete)
