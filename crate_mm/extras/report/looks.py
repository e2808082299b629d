"""A close look at a few images: attention, masks, components, codes and predictions, packed for the page.

Shapes: B images, N tokens, K heads, m directions of the dictionary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...analysis.attention import no_attention
from ...analysis.projection import pca_colors
from ...analysis.segmentation import attention_masks, best_heads
from ...analysis.taps import find_layers, layout_of, name_of, read_taps
from ...models.layers import TokenLayout
from .pack import pack

MAX_TOKENS, MAX_CHANNELS = 64, 192  # of a code that are shown, evenly spaced
TOP_CLASSES = 5
NO_GRID = "it does not tell which of its tokens are patches (layout)"


class AttentionBudget:
    """How finely attention between patches is kept, so that the page stays below its size.

    With 16 bits, or with 8, or between blocks of patches, of the smallest side with which it fits.

    Args:
        grids: of each model how many maps there are, and the (rows, columns) of patches.
        room: bytes.
    """

    def __init__(self, grids: list[tuple[int, tuple[int, int]]], room: float) -> None:
        def size(side: int) -> int:
            return sum(maps * (-(-rows // side) * -(-columns // side) + 1) ** 2 for maps, (rows, columns) in grids)

        text = 4 / 3  # bytes of base64 a byte
        self.side = 1
        while size(self.side) * text > room and any(max(grid) > self.side for _, grid in grids):
            self.side += 1
        self.bits = 16 if self.side == 1 and 2 * size(1) * text <= room else 8


@torch.inference_mode()
def count_maps(model: nn.Module, batch: dict) -> int:
    """How many attention matrices the layers of a model compute for one image."""
    counts, layers = [], find_layers(model)
    inputs = model.data_preprocessor(batch)
    layout = layout_of(model, inputs["inputs"])

    def read(number: int, w: Tensor) -> None:
        attention = layers[number].attention(w, layout)
        counts.append(0 if attention is None else attention.shape[1])

    if any("tap_w" in layer.taps() for layer in layers.values()):
        with read_taps(model, {"tap_w": read}):
            model(**inputs)
    return sum(counts)


def block_attention(attention: Tensor, first: int, grid: tuple[int, int], side: int) -> Tensor:
    """Attention between blocks of ``side x side`` patches: ``(..., N, N) -> (..., 1 + n, 1 + n)``.

    Row and column 0 are the CLS token's, or nothing (0) without such. A block's row is the mean over its patches' rows;
    what it attends to a block is the sum over that block's patches. With ``side`` 1 the blocks are the patches.
    """
    rows, columns = grid
    N = attention.shape[-1]
    label = torch.zeros(N, dtype=torch.long)
    place = torch.arange(rows * columns)
    across = -(-columns // side)
    label[first : first + rows * columns] = 1 + (place // columns // side) * across + (place % columns) // side
    member = F.one_hot(label, 1 + (-(-rows // side)) * across).to(attention)
    member[:first, 0] = 0
    if first:
        member[0, 0] = 1  # of several tokens before the patches the first is the CLS token
    asking = member / member.sum(0).clamp_min(1)
    return asking.mT @ attention @ member


def evenly(total: int, most: int) -> list[int]:
    """At most so many of ``total`` places, evenly spaced."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)).tolist()


class Looks:
    """What is seen of the layers of one model, image by image; ``data`` packs it.

    Args:
        model: in eval mode.
        plan: how finely attention is kept.
        truths: of each image in turn each pixel's class, ``(H, W)``, or None where that is not known.
    """

    def __init__(self, model: nn.Module, plan: AttentionBudget, truths: Sequence[Tensor | None] = ()) -> None:
        self.truths = truths
        self.model, self.plan, self.layers = model, plan, find_layers(model)
        self.layout: TokenLayout | None = None  # of the images that were looked at
        self.blocks: dict[int, list[Tensor]] = {}
        self.cls: dict[int, list[Tensor]] = {}
        self.codes: dict[int, list[Tensor]] = {}
        self.patches: dict[int, list[Tensor]] = {}
        self.code_sizes: dict[int, tuple[list[int], list[int], int]] = {}  # tokens and channels shown, of how many
        self.predicted: list[list[tuple[int, float]]] = []

    @torch.inference_mode()
    def look(self, batch: dict) -> None:
        """Look at a batch, one image at a time: attention matrices are large."""
        offered = {tap for layer in self.layers.values() for tap in layer.taps()}
        readers = {"tap_w": self._w, "tap_code": self._code, "tap_out": self._out}
        with read_taps(self.model, {tap: read for tap, read in readers.items() if tap in offered}):
            for i in range(len(batch["inputs"])):
                one = {key: value[i : i + 1] for key, value in batch.items()}
                inputs = self.model.data_preprocessor(one)
                self.layout = layout_of(self.model, inputs["inputs"])
                out = self.model(**inputs)
                if self.model.is_classifier:
                    scores, classes = out.cpu().double().softmax(-1)[0].topk(min(TOP_CLASSES, out.shape[-1]))
                    self.predicted.append(list(zip(classes.tolist(), scores.tolist())))

    def _w(self, layer: int, w: Tensor) -> None:
        attention = None if self.layout is None else self.layers[layer].attention(w, self.layout)
        if attention is None:
            return
        first, *grid = self.layout
        attention = attention[0].float().cpu()
        self.blocks.setdefault(layer, []).append(block_attention(attention, first, tuple(grid), self.plan.side))
        if first:
            self.cls.setdefault(layer, []).append(attention[:, 0, first:])

    def _code(self, layer: int, code: Tensor) -> None:
        tokens, channels = evenly(code.shape[1], MAX_TOKENS), evenly(code.shape[2], MAX_CHANNELS)
        self.codes.setdefault(layer, []).append(code[0].float().cpu()[tokens][:, channels])
        self.code_sizes[layer] = tokens, channels, code.shape[2]

    def _out(self, layer: int, z: Tensor) -> None:
        if self.layout is not None:
            first, rows, columns = self.layout
            self.patches.setdefault(layer, []).append(z[0, first : first + rows * columns].float().cpu())

    def data(self, layer: int) -> dict[str, Any]:
        """What is seen in a layer, counted from 0; None where it is not defined."""
        told: dict[str, Any] = {"attention": None, "code": None, "pca": None, "masks": None}
        if layer in self.blocks:
            blocks = torch.stack(self.blocks[layer])  # (B, K, 1 + n, 1 + n)
            told["attention"] = pack(blocks, self.plan.bits, power=2, groups=blocks.shape[0] * blocks.shape[1])
        if layer in self.cls:
            cls = torch.stack(self.cls[layer])  # (B, K, N)
            told["cls"] = pack(cls, self.plan.bits, power=2, groups=cls.shape[0] * cls.shape[1])
            masks = attention_masks(cls)
            told["masks"] = pack(masks.float())
            told["best"] = [self._best(*pair) for pair in zip(masks, self.truths)]
        if layer in self.codes:
            codes = torch.stack(self.codes[layer])
            tokens, channels, of = self.code_sizes[layer]
            shown = {"values": pack(codes.abs(), groups=len(codes)), "tokens": tokens, "channels": channels, "of": of}
            told["code"] = shown
        if layer in self.patches:
            try:
                told["pca"] = pack(pca_colors(torch.stack(self.patches[layer]))[0])
            except ValueError:  # fewer than three patches in all
                told["pca"] = None
        return told

    def _best(self, masks: Tensor, truth: Tensor | None) -> list[dict[str, Any]] | None:
        """Of each class in an image the head, counted from 0, whose mask ``(K, N)`` fits it best."""
        if truth is None:
            return None
        maps = masks.unflatten(-1, self.layout[1:]).float()
        large = F.interpolate(maps[None], truth.shape, mode="nearest-exact")[0].bool()
        return [overlap._asdict() for overlap in best_heads(large, truth)]

    def undefined(self) -> dict[str, str]:
        """Of each view that the model does not have why it does not."""
        name, told = name_of(self.model), {}
        one = next(iter(self.layers.values()))
        if not self.blocks:
            why = NO_GRID if self.layout is None else no_attention(one)
            told["attention"] = f"{name} has no attention map: {why}."
        if not self.cls:
            why = f"{name} has no CLS token in its layers." if self.blocks else told["attention"]
            told["cls"] = why
        if not self.codes:
            kind = type(one if one.sparsify is None else one.sparsify).__name__
            told["code"] = f"{name} has no sparse code: its {kind} makes none."
        if all(layer.subspaces() is None for layer in self.layers.values()):
            told["subspaces"] = f"{name} has no subspaces: they, R\u1d9c and energies in them are not defined."
        if self.layout is None:
            told["pca"] = f"{name} shows no patches: {NO_GRID}."
        elif len(next(iter(self.patches.values()), [])) * self.layout.rows * self.layout.columns < 3:
            told["pca"] = f"{name} shows no components: three of them need at least three patches."
        if not self.predicted:
            told["classes"] = f"{type(self.model).__name__} predicts no classes."
        return told
