"""Causal AoT, the attention-only language model: each layer compresses the tokens and does nothing else.

Source: Wang et al., "Attention-Only Transformers via Unrolled Subspace Denoising", ICML 2025, arXiv 2506.03790. Its
authors have published neither code nor weights: embeddings, LayerNorms and names are those of causal CRATE's code.
Shapes: B texts, N tokens, d embedding dimensions.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

from ...registry import BACKBONES
from ..official import Argument, Official
from .aot import AOT_ARCHS
from .causal import CONTEXT_LENGTH, NANOGPT_SHAPES, VOCAB_SIZE, CausalBackbone, language_model, untie
from .causal_crate import OFFICIAL as CAUSAL_CRATE


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the model with these sizes (see ``Official``)."""
    return language_model("CausalAoT", AOT_ARCHS, s)


# Causal CRATE is registered first: its declaration is tried first and reports the errors of its own files.
OFFICIAL = replace(
    CAUSAL_CRATE,
    source="an attention-only model in the code of causal CRATE",
    signs=("transformer.wte.weight", "transformer.h.0.prenorm_1.weight"),
    shapes=NANOGPT_SHAPES,
    arguments={"num_heads": Argument(words="{} heads")},
    model=official_model,
    unpack=untie,
)


@BACKBONES.register_module()
class CausalAoT(CausalBackbone):
    """Causal AoT: token IDs ``(B, N)`` to tokens ``(B, N, d)``. A layer is ``Z^{l+1} = Z^l + MSSA(LN(Z^l))``.

    ``compress=dict(type="SoftmaxAttention", causal=True)`` is the paper's variant with multi-head self-attention
    (MHSA).

    Args:
        arch: a name of ``AOT_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        vocab_size: number of token IDs.
        context_length: largest N.
        compress: config of ``LAYERS`` to replace the causal ``MSSA``.

    Raises:
        ValueError: as for ``CausalBackbone``, or ``compress=None``.
    """

    archs = AOT_ARCHS
    official: ClassVar[Official] = OFFICIAL

    def __init__(
        self,
        arch: str | dict = "base",
        vocab_size: int = VOCAB_SIZE,
        context_length: int = CONTEXT_LENGTH,
        compress: dict | str = "default",
    ) -> None:
        default = ({"type": "MSSA", "causal": True}, None)
        super().__init__(arch, vocab_size, context_length, (compress, None), default)
