"""GPT-2, the baseline of the causal white-box models: softmax attention and an MLP.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. ``OFFICIAL`` declares the weights
of nanoGPT, github.com/karpathy/nanoGPT, and of Hugging Face's transformers.
Shapes: B texts, N tokens, d embedding dimensions.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor

from ...registry import BACKBONES
from ..arch import Arch
from ..official import Argument, Official
from .causal import CONTEXT_LENGTH, NANOGPT_SHAPES, VOCAB_SIZE, CausalBackbone, language_model, layer_names, untie

GPT2_ARCHS: dict[str, Arch] = {
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "medium": Arch(embed_dim=1024, depth=24, num_heads=16),
    "large": Arch(embed_dim=1280, depth=36, num_heads=20),
    "xl": Arch(embed_dim=1600, depth=48, num_heads=25),
}


def unpack(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Return the weights in nanoGPT's layout; files of transformers have transposed linear maps and a tanh GELU."""
    if "transformer.wte.weight" not in weights:
        weights = {name if name == "lm_head.weight" else f"transformer.{name}": v for name, v in weights.items()}
    weights, unused, sizes = untie(weights)
    if weights["transformer.h.0.mlp.c_fc.weight"].shape[0] == weights["transformer.wte.weight"].shape[-1]:
        linear = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
        weights = {
            name: value.mT if name.endswith(linear) and value.ndim == 2 else value for name, value in weights.items()
        }
        sizes["tanh_gelu"] = True
    return weights, unused, sizes


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the model with these sizes (see ``Official``)."""
    options = {"tanh_gelu": True} if s.tanh_gelu else {}
    return language_model("GPT2", GPT2_ARCHS, s, **options, **({} if s.bias else {"bias": False}))


NANOGPT = Official(
    source="GPT-2 in nanoGPT's or transformers' code",
    signs=("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"),
    key_map=layer_names(
        {
            "ln_1": "norm_compress",
            "ln_2": "norm_sparsify",
            "attn.c_attn": "compress.qkv",
            "attn.c_proj": "compress.out",
            "mlp.c_fc": "sparsify.fc1",
            "mlp.c_proj": "sparsify.fc2",
        }
    ),
    shapes=NANOGPT_SHAPES,
    counts={"depth": r"transformer\.h\.(\d+)\."},
    flags={"bias": "transformer.h.0.mlp.c_fc.bias"},
    # nanoGPT's GELU was the tanh approximation until February 2023.
    arguments={"num_heads": Argument(words="{} heads"), "tanh_gelu": Argument(False, "tanh_gelu = {}")},
    assumes="LayerNorms with epsilon 1e-5",
    model=official_model,
    unlike="several numbers of heads fit a width of {embed_dim}",
    unpack=unpack,
)
HUB = replace(NANOGPT, signs=("wte.weight", "h.0.mlp.c_fc.weight"))  # a file of transformers' GPT2Model has no prefix


@BACKBONES.register_module()
class GPT2(CausalBackbone):
    """GPT-2: token IDs ``(B, N)`` to tokens ``(B, N, d)``.

    Args:
        arch: a name of ``GPT2_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        vocab_size: number of token IDs.
        context_length: largest N.
        bias: whether linear maps and LayerNorms have a bias.
        tanh_gelu: whether GELU is approximated by tanh, as in OpenAI's weights.

    Raises:
        ValueError: as for ``CausalBackbone``.
    """

    archs = GPT2_ARCHS
    official: ClassVar[Official] = replace(NANOGPT, variants=(HUB,))

    def __init__(
        self,
        arch: str | dict = "base",
        vocab_size: int = VOCAB_SIZE,
        context_length: int = CONTEXT_LENGTH,
        bias: bool = True,
        tanh_gelu: bool = False,
    ) -> None:
        mlp = {"type": "MLP", "bias": bias, "approximate": "tanh" if tanh_gelu else "none"}
        operators = {"type": "SoftmaxAttention", "bias": bias, "causal": True}, mlp
        options = {"residual": True, "norm_bias": bias}
        super().__init__(arch, vocab_size, context_length, ("default", "default"), operators, **options)
