"""Base of causal language models: token and position embeddings, causal layers, output tied to the token embedding.

Shapes: B texts, N tokens, d embedding dimensions.
"""

import math
import re
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arch import Arch, Sizes, resolve_arch
from ..backbone import Backbone, InputSpec
from .block import build_blocks

# GPT-2's tokenizer has 50,257 IDs. The official code of these models rounds this up to a multiple of 64.
VOCAB_SIZE, CONTEXT_LENGTH = 50304, 1024
MASKS = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # buffers of the causal mask in older code

NANOGPT_SHAPES = {
    "transformer.wte.weight": "vocab_size embed_dim",
    "transformer.wpe.weight": "context_length embed_dim",
}


def layer_names(layer: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return ``Official.key_map`` for a model of nanoGPT's code.

    Args:
        layer: maps nanoGPT's names of a layer's modules to ours.
    """
    own = (
        (rf"transformer\.h\.(\d+)\.{re.escape(theirs)}((?:\.weight|\.bias)?)", ours) for theirs, ours in layer.items()
    )
    return (
        (r"transformer\.wte\.weight", r"backbone.token_embedding.weight"),
        (r"transformer\.wpe\.weight", r"backbone.position_embedding.weight"),
        (r"transformer\.ln_f\.(weight|bias)", r"backbone.norm.\1"),
        *((theirs, rf"backbone.blocks.\1.{ours}\2") for theirs, ours in own),
    )


def untie(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Remove the tied output and the buffers of causal masks from weights of nanoGPT's code.

    The function is an ``Official.unpack``.

    Raises:
        ValueError: the output differs from the token embedding.
    """
    output, masks = weights.get("lm_head.weight"), [name for name in weights if re.fullmatch(MASKS, name)]
    embedding = weights["transformer.wte.weight"]
    if output is not None and not torch.equal(output.to(embedding.dtype), embedding):
        raise ValueError("lm_head.weight differs from transformer.wte.weight: expected an output tied to the embedding")
    return {name: value for name, value in weights.items() if name not in ("lm_head.weight", *masks)}, masks, {}


def language_model(kind: str, archs: dict[str, Arch], s: SimpleNamespace, **backbone: Any) -> dict:
    """Return the config of a language model whose sizes were read from a file (see ``Official``)."""
    arch = Sizes("", archs).name_of(Arch(s.embed_dim, s.depth, s.num_heads))
    lengths = {"vocab_size": s.vocab_size, "context_length": s.context_length}
    return {"type": "LanguageModel", "backbone": {"type": kind, "arch": arch, **lengths, **backbone}}


class Cache:
    """State of a ``CausalBackbone`` after the tokens of earlier calls; each call updates it in place.

    Attributes:
        length: number of tokens processed so far.
        layers: the ``cache`` of each layer's ``Compression``.
    """

    def __init__(self, depth: int) -> None:
        self.length = 0
        self.layers: list[dict[str, Tensor]] = [{} for _ in range(depth)]


class CausalBackbone(Backbone):
    """Backbone from token IDs ``(B, N)`` to tokens ``(B, N, d)``; a token depends only on the IDs up to its position.

    Args:
        arch: a name of ``archs`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        vocab_size: number of token IDs.
        context_length: largest N, the number of position embeddings.
        operators: the user's configs of ``LAYERS`` for compression and sparsification; 'default' selects the family's
            operator.
        default: configs of the family's operators.
        final_norm: whether a LayerNorm follows the layers.
        norm_bias: whether LayerNorms have a bias.
        options: further arguments of ``Block``.

    Attributes:
        archs: named sizes of the family.

    Raises:
        ValueError: unknown ``arch``, a size that is not a positive integer, a compression that is not causal;
            (in forward) inputs that are not IDs, an ID outside the vocabulary (on the CPU), too many tokens.
    """

    archs: ClassVar[dict[str, Arch]]
    stem = ("token_embedding", "position_embedding")

    def __init__(
        self,
        arch: str | dict,
        vocab_size: int,
        context_length: int,
        operators: tuple[dict | str | None, dict | str | None],
        default: tuple[dict, dict | None],
        final_norm: bool = True,
        norm_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        size = resolve_arch(arch, self.archs)
        for name, number in (("vocab_size", vocab_size), ("context_length", context_length)):
            if type(number) is not int or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        self.embed_dim, self.vocab_size, self.context_length = size.embed_dim, vocab_size, context_length
        self.token_embedding = nn.Embedding(vocab_size, self.embed_dim)
        self.position_embedding = nn.Embedding(context_length, self.embed_dim)
        self.blocks = build_blocks(size, *operators, default, norm_bias=norm_bias, **options)
        self.norm = nn.LayerNorm(self.embed_dim, bias=norm_bias) if final_norm else nn.Identity()
        for block in self.blocks:
            if block.compress is not None and not block.compress.causal:
                raise ValueError(
                    f"{type(self).__name__} needs a causal compression, but this {type(block.compress).__name__} is "
                    'not causal: set compress=dict(type="MSSA", causal=True), for example'
                )
        self._initialize()

    def _initialize(self) -> None:
        """Draw weights from N(0, s^2): s = 0.02, or 0.02 / sqrt(2 L) for the last map of each branch, with L layers."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                is_last = name.endswith((".compress.out", ".sparsify.fc2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * len(self.blocks)) if is_last else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(None, (self.context_length,), any_size=True, dtype=torch.int64)

    def new_cache(self) -> Cache:
        """Return an empty cache. In ``backbone(ids, cache)``, the IDs continue those of the earlier calls."""
        return Cache(len(self.blocks))

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        self._check(ids, start)
        z = self.token_embedding(ids) + self.position_embedding.weight[start : start + ids.shape[1]]
        if cache is None:
            for block in self.blocks:
                z = block(z)
        else:
            for block, own in zip(self.blocks, cache.layers, strict=True):
                z = block(z, cache=own)
            cache.length += ids.shape[1]
        return self.norm(z)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token ID, ``(B, N, d)`` to ``(B, N, vocab_size)``, by the tied embedding."""
        return F.linear(tokens, self.token_embedding.weight)

    def _check(self, ids: Tensor, start: int) -> None:
        name = type(self).__name__
        if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"{name} takes integer token IDs (B, N), got {ids.dtype} of shape {tuple(ids.shape)}")
        if start + ids.shape[1] > self.context_length:
            raise ValueError(
                f"{name} has positions for {self.context_length} tokens (context_length), got {start + ids.shape[1]}"
            )
        # On other devices, the check would wait for the device. A graph that is compiled or traced has no values.
        if ids.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing() or not ids.numel():
            return
        low, high = (value.item() for value in ids.aminmax())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"{name} has a vocabulary of {self.vocab_size} tokens (vocab_size), got the ID "
                f"{low if low < 0 else high}: expected IDs from 0 to {self.vocab_size - 1}"
            )
