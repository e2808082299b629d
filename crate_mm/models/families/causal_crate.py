"""Causal CRATE, the language model with CRATE's layers: a causal MSSA, and ISTA as it is.

Source: crate-lm/crate-lm, ``crate.py`` and ``crate_overcomplete.py``, by a co-author of CRATE's journal paper; Bai and
Ma, "Improving Neuron-level Interpretability with White-box Language Models", CPAL 2025, arXiv 2410.16443.
Shapes: B texts, N tokens, d embedding dimensions.
"""

from ...registry import BACKBONES
from ..arch import Arch
from .causal import CONTEXT_LENGTH, VOCAB_SIZE, CausalBackbone

# The code has only the names of "medium", "large" and "xl". "1l" is the one-layer model of its training script.
CAUSAL_CRATE_ARCHS: dict[str, Arch] = {
    "1l": Arch(embed_dim=512, depth=1, num_heads=4),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "medium": Arch(embed_dim=1024, depth=24, num_heads=16),
    "large": Arch(embed_dim=1280, depth=36, num_heads=20),
    "xl": Arch(embed_dim=1600, depth=48, num_heads=25),
}


@BACKBONES.register_module()
class CausalCRATE(CausalBackbone):
    """Causal CRATE: token IDs ``(B, N)`` to tokens ``(B, N, d)``.

    The form with a square dictionary has no LayerNorm after the layers. In the ``overcomplete`` form, a layer ends with
    two steps of ISTA with a dictionary of 4 d atoms, decoded with the same dictionary, and a LayerNorm follows the
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
