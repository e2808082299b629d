"""Put a model's weights into the page, which then computes the forward pass itself (``assets/model.js``).

This is possible for an ``ImageClassifier`` of a CRATE and a ``LanguageModel`` of a causal CRATE with their own
operators: MSSA with a residual connection, then ISTA without a residual connection.

Matrices of at least ``LARGE`` numbers are stored in ``dtype``, all other tensors in float32. 'half' is IEEE float16.
'byte' is int8 with one float32 scale per row: ``value = q * scale``. All float32 numbers come first, then the matrices:
for 'byte' their bytes, for 'half' all high bytes and then all low bytes, because this compresses better. The result is
compressed with gzip and encoded in base64.
"""

import base64
import copy
import gzip
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...analysis.taps import name_of
from ...models.families.causal_crate import CausalCRATE
from ...models.families.crate import CRATE
from ...models.layers import ISTA, MSSA, Block
from ...models.tasks.classifier import ImageClassifier
from ...models.tasks.heads import LinearHead
from ...models.tasks.language import LanguageModel
from ...models.tasks.preprocessor import ImagePreprocessor

LARGE = 4096  # smallest number of entries of a matrix that is stored in `dtype`
MAX_PRODUCTS = 60_000_000  # multiply-adds of a forward pass on an image, which runs at each stroke of a drawing
MAX_TEXT_PRODUCTS = 300_000_000  # multiply-adds of a forward pass on a text, which runs when the user stops typing
DTYPES = ("half", "byte")  # the most precise first


def why_not(model: nn.Module) -> str | None:
    """Return why a page cannot compute the model's forward pass, as a sentence; None if it can."""
    name = name_of(model)
    computed = f"{name} shows what was computed when the page was made"
    if not is_plain(model):
        return f"The page can run only CRATE's own layers: {computed}."
    what, most = ("text", MAX_TEXT_PRODUCTS) if isinstance(model, LanguageModel) else ("image", MAX_PRODUCTS)
    if products(model) > most:
        return f"One {what} takes more than {most // 1_000_000} million multiply-adds: {computed}."
    return None


def is_plain(model: nn.Module) -> bool:
    """Return whether ``model.js`` can compute every part of a model."""
    is_classifier = (
        type(model) is ImageClassifier
        and type(model.backbone) is CRATE
        and type(model.data_preprocessor) is ImagePreprocessor
        and type(model.head) is LinearHead
        and model.num_classes > 0
        and model.in_channels in (1, 3)
    )
    is_language_model = type(model) is LanguageModel and type(model.backbone) is CausalCRATE
    return (is_classifier or is_language_model) and (
        all(
            type(block) is Block
            and type(block.compress) is MSSA
            and type(block.sparsify) is ISTA
            and block.gamma_compress is None
            and not block.residual
            for block in model.backbone.blocks
        )
    )


def products(model: ImageClassifier | LanguageModel) -> int:
    """Return the multiply-adds of the page's forward pass on one image or on the longest text."""
    d = model.backbone.embed_dim
    if isinstance(model, LanguageModel):
        N = model.backbone.context_length
        total = N * d * model.backbone.vocab_size
    else:
        N = model.backbone.embedding.pos_embed.shape[1]
        total = (N - 1) * model.backbone.embedding.proj.weight.numel() + d * model.num_classes
    for block in model.backbone.blocks:
        width = block.compress.proj.out_features
        total += N * d * width * 2 + 2 * N * N * width + 2 * N * d * d
    return total


def running_model(model: ImageClassifier | LanguageModel, max_bytes: float, probe: Tensor) -> dict[str, Any] | None:
    """Return the weights and settings that ``model.js`` computes with; None if they need more than ``max_bytes``.

    The most precise dtype that fits is chosen. ``checked`` compares the stored weights with the original weights on
    ``probe``, as ``compare`` does.

    Args:
        model: a model in eval mode for which ``why_not`` returns None.
        max_bytes: size limit of the packed weights.
        probe: uint8 images ``(B, C, H, W)``, or token IDs ``(B, N)``.
    """
    for dtype in DTYPES:
        packed = pack_weights(model, dtype)
        if len(packed["gzip"]) <= max_bytes:
            return describe(model) | packed | {"checked": compare(model, rounded(model, dtype), probe)}
    return None


def describe(model: ImageClassifier | LanguageModel) -> dict[str, Any]:
    """Return the sizes and settings of the forward pass."""
    backbone, blocks = model.backbone, list(model.backbone.blocks)
    layers = {
        "width": backbone.embed_dim,
        "heads": [block.compress.num_heads for block in blocks],
        "head_dims": [block.compress.head_dim for block in blocks],
        "output": [
            "tied" if b.compress.tied else "out" if isinstance(b.compress.out, nn.Linear) else "none" for b in blocks
        ],
        "eta": [block.sparsify.step_size for block in blocks],
        "lambda": [block.sparsify.lambd for block in blocks],
    }
    eps = {
        "compress": [block.norm_compress.eps for block in blocks],
        "sparsify": [block.norm_sparsify.eps for block in blocks],
    }
    if isinstance(model, LanguageModel):
        final = backbone.norm.eps if isinstance(backbone.norm, nn.LayerNorm) else None
        return {**layers, "eps": {**eps, "final": final}, "causal": True, "context": backbone.context_length}
    head = model.head
    normalized = isinstance(head.norm, nn.LayerNorm)
    return {
        **layers,
        "image": list(backbone.img_size),
        "patch": list(backbone.patch_size),
        "channels": backbone.in_channels,
        "pool": head.pool,
        "eps": {
            "patch": backbone.embedding.patch_norm.eps,
            "token": backbone.embedding.norm.eps,
            **eps,
            "head": head.norm.eps if normalized else None,
        },
        "mean": model.data_preprocessor.mean.flatten().tolist(),
        "scale": model.data_preprocessor.scale.flatten().tolist(),
        "classes": model.num_classes,
        "smoothing": model.label_smoothing,
    }


def tensors_of(model: ImageClassifier | LanguageModel) -> dict[str, Tensor]:
    """Return the tensors of the forward pass by the name that ``model.js`` reads."""
    if isinstance(model, LanguageModel):
        backbone = model.backbone
        modules = {"final_norm": backbone.norm} if isinstance(backbone.norm, nn.LayerNorm) else {}
        tensors = {"embedding": backbone.token_embedding.weight, "pos": backbone.position_embedding.weight}
    else:
        embedding, head = model.backbone.embedding, model.head
        modules = {"patch_norm": embedding.patch_norm, "proj": embedding.proj, "norm": embedding.norm, "fc": head.fc}
        if isinstance(head.norm, nn.LayerNorm):
            modules["head_norm"] = head.norm
        tensors = {"cls": embedding.cls_token[0], "pos": embedding.pos_embed[0]}
    for layer, block in enumerate(model.backbone.blocks):
        modules |= {f"{layer}.norm_compress": block.norm_compress, f"{layer}.norm_sparsify": block.norm_sparsify}
        tensors |= {f"{layer}.subspaces": block.compress.proj.weight, f"{layer}.dictionary": block.sparsify.dictionary}
        if isinstance(block.compress.out, nn.Linear):
            modules[f"{layer}.out"] = block.compress.out
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in module.named_parameters()}
    return {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}


def is_large(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.numel() >= LARGE


def pack_weights(model: ImageClassifier | LanguageModel, dtype: str) -> dict[str, Any]:
    """Return ``{dtype, tensors: [[name, shape, is large]], gzip}``. Tensors of one dtype are stored in this order."""
    plain, large, names = [], [], []
    for name, tensor in tensors_of(model).items():
        names.append([name, list(tensor.shape), is_large(tensor)])
        if not is_large(tensor):
            plain.append(tensor.numpy().astype("<f4").ravel())
        elif dtype == "half":
            large.append(tensor.numpy().astype("<f2").ravel())
        else:
            q, scale = to_bytes(tensor)
            plain.append(scale.numpy().astype("<f4").ravel())
            large.append(q.numpy().ravel())
    numbers = np.concatenate(plain).tobytes()
    matrices = np.concatenate(large) if large else np.zeros(0, "<f2" if dtype == "half" else np.int8)
    planes = matrices.view(np.uint8)
    if dtype == "half":
        planes = np.concatenate([planes[1::2], planes[::2]])
    text = base64.b64encode(gzip.compress(numbers + planes.tobytes(), 9, mtime=0)).decode()
    return {"dtype": dtype, "tensors": names, "gzip": text}


def to_bytes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 numbers q and a scale per row, such that ``q * scale`` approximates the matrix."""
    scale = matrix.abs().amax(1, keepdim=True) / 127
    return (matrix / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8), scale


def rounded(model: ImageClassifier | LanguageModel, dtype: str) -> ImageClassifier | LanguageModel:
    """Return a copy of the model with the weights as the page decodes them."""
    copied = copy.deepcopy(model).float().cpu()
    for tensor in tensors_of(copied).values():  # these tensors share the parameters' memory
        if is_large(tensor):
            q, scale = to_bytes(tensor)
            tensor.copy_(tensor.half() if dtype == "half" else q * scale)
    return copied.to(next(model.parameters()).device)


@torch.inference_mode()
def compare(model: nn.Module, copied: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """Compare two models on images or tokens: the number of equal predictions, and the largest probability change."""
    inputs = inputs.to(next(model.parameters()).device)
    a, b = (m(**m.data_preprocessor({"inputs": inputs})).softmax(-1).flatten(0, -2) for m in (model, copied))
    return {"same": int((a.argmax(-1) == b.argmax(-1)).sum()), "of": len(a), "most": (a - b).abs().max().item()}
