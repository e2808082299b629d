"""Base of the white-box mask decoders: class tokens, masks as cosines, and the authors' weights.

Source: Wen and Li, "Rethinking Decoders for Transformer-based Semantic Segmentation: A Compression Perspective",
NeurIPS 2024, arXiv 2411.03033, and its code, github.com/QishuaiWen/DEPICT.
Shapes: B images, N = h w patches, C classes, d embedding dimensions, K heads of dimension p.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import HEADS
from ..layers import Layer, TokenLayout
from ..official import Official
from ..translate import TranslationError, translate


class MaskDecoder(nn.Module):
    """Decoder from patches ``(B, N, d)``, row by row, to masks ``(B, C, h, w)``, the class logits of each patch.

    The masks are ``LN(unit(patches) unit(classes)^T)``, with a LayerNorm over the classes. A subclass computes the
    patches and the class tokens with ``Layer`` modules, which ``measure_layers(decoder)`` and ``capture(decoder)``
    read: by default with ``blocks``, followed by a LayerNorm, ``norm``. The tokens of a layer are the patches, followed
    by the class tokens if the layer has both.

    Args:
        embed_dim: d, the width of the backbone.
        num_classes: C.

    Attributes:
        official: declaration of the authors' weights, for ``from_official``.

    Raises:
        ValueError: ``num_classes`` is not positive, or (in forward) the patches do not form the grid.
    """

    official: ClassVar[Official | None] = None
    blocks: nn.ModuleList
    norm: nn.Module

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        if not num_classes or num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.class_tokens = nn.Parameter(torch.empty(1, num_classes, embed_dim))
        nn.init.trunc_normal_(self.class_tokens, std=0.02)
        self.mask_norm = nn.LayerNorm(num_classes)

    def decode(self, patches: Tensor, classes: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Return patches ``(B, N, d)`` and class tokens ``(B, C, d)`` after the layers and the last LayerNorm."""
        z = torch.cat([patches, classes], dim=1)
        for block in self.blocks:
            z = block(z, layout)
        return self.norm(z).tensor_split([patches.shape[1]], dim=1)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        h, w = grid
        if patches.ndim != 3 or patches.shape[1:] != (h * w, self.embed_dim):
            raise ValueError(
                f"{type(self).__name__} takes patches of shape (B, {h * w}, {self.embed_dim}) for a grid of {h} x {w}, "
                f"got {tuple(patches.shape)}: leave out the CLS token"
            )
        classes = self.class_tokens.expand(patches.shape[0], -1, -1)
        patches, classes = self.decode(patches, classes, TokenLayout(0, h, w))
        masks = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT
        return self.mask_norm(masks).mT.unflatten(-1, (h, w))

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **sizes: int) -> "MaskDecoder":
        """Build the decoder that matches the authors' weights, in eval mode, and load them in their dtype.

        Args:
            state_dict: the decoder's weights under the authors' names, without their prefix ``decoder.``.
            sizes: sizes to check, such as ``num_classes`` and ``num_heads``; the shapes determine all sizes.

        Raises:
            ValueError: the names or shapes are not those of this decoder, or a size differs.
        """
        if cls.official is None:
            raise ValueError(f"{cls.__name__} declares no third-party weights")
        translation = translate(cls.official, dict(state_dict), build=HEADS.build, **sizes)
        if translation is None:
            missing = next(sign for sign in cls.official.signs if sign not in state_dict)
            raise TranslationError(f"these are not the weights of {cls.official.source}: {missing} is missing")
        decoder = HEADS.build(translation.model)
        # ``assign`` keeps the dtype of the weights. Clones protect the caller's tensors from training.
        decoder.load_state_dict({key: value.clone() for key, value in translation.weights.items()}, assign=True)
        return decoder.requires_grad_().eval()


def class_maps(layer: Layer, w: Tensor, layout: TokenLayout) -> tuple[str, Tensor] | None:
    """Return the name and the values of a layer's map from class tokens to patches; None if there is no such map.

    The map is ``(B, K, C, h, w)``: rows of the attention in MSSA and MSCA, rows of the similarity A^T A in CBSA.

    Args:
        layer: a layer of a decoder.
        w: output of the layer's ``tap_w``.
        layout: the grid of the patches, which come first.
    """
    grid = layout.rows, layout.columns
    for name, (values, *axes) in layer.maps(w, layout).items():
        if axes == ["classes", "patches"]:
            return name, values.unflatten(-1, grid)
        patches = layout.rows * layout.columns
        if axes == ["tokens", "tokens"] and values.shape[2] > patches:
            return name, values[:, :, patches:, :patches].unflatten(-1, grid)
    return None


def head_count(name: str, head_dim: int) -> Any:
    """Return an ``Official.unpack`` that divides the rows of the weight ``name`` by a fixed p to get ``num_heads``."""

    def unpack(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, int]]:
        rows = len(weights[name])
        if rows == 0 or rows % head_dim:
            raise TranslationError(f"{name} has {rows} rows, expected a multiple of {head_dim}, the head dimension")
        return weights, [], {"num_heads": rows // head_dim}

    return unpack
