"""Views of a few images, packed for the page: attention, masks and predictions.

Shapes: B images, N tokens, K heads.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...analysis.attention import no_attention
from ...analysis.figures.masks import Example, chosen_layer, examples_of
from ...analysis.segmentation import attention_masks, best_heads
from ...analysis.taps import find_layers, layout_of, name_of, read_taps
from ...models.layers import TokenLayout
from ...models.tasks.segmentation import Segmentation
from .pack import pack

SAMPLED = 100_000  # maximum number of a layer's attention values from which the color scale is computed
TOP_CLASSES = 5
NO_GRID = "its layout does not define which tokens are patches"


class AttentionBudget:
    """Resolution at which attention between patches is stored within a size limit.

    The first that fits is used: 16 bits; 8 bits; 8 bits between blocks of patches, with the smallest possible side.

    Args:
        grids: for each model, the number of maps and the (rows, columns) of patches.
        max_bytes: size limit.
    """

    def __init__(self, grids: list[tuple[int, tuple[int, int]]], max_bytes: float) -> None:
        def size(side: int) -> int:
            return sum(maps * (-(-rows // side) * -(-columns // side) + 1) ** 2 for maps, (rows, columns) in grids)

        text = 4 / 3  # base64 characters per byte
        self.side = 1
        while size(self.side) * text > max_bytes and any(max(grid) > self.side for _, grid in grids):
            self.side += 1
        self.bits = 16 if self.side == 1 and 2 * size(1) * text <= max_bytes else 8


@torch.inference_mode()
def count_maps(model: nn.Module, batch: dict) -> int:
    """Return how many attention matrices a model's layers compute for one image."""
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
    """Return attention between blocks of ``side x side`` patches: ``(..., N, N) -> (..., 1 + n, 1 + n)``.

    Row 0 and column 0 belong to the CLS token; they are zero without a CLS token. A block's row is the mean of its
    patches' rows. The attention to a block is the sum over its patches. With ``side`` 1 each block is one patch.
    """
    rows, columns = grid
    N = attention.shape[-1]
    label = torch.zeros(N, dtype=torch.long)
    index = torch.arange(rows * columns)
    across = -(-columns // side)
    label[first : first + rows * columns] = 1 + (index // columns // side) * across + (index % columns) // side
    member = F.one_hot(label, 1 + (-(-rows // side)) * across).to(attention)
    member[:first, 0] = 0
    if first:
        member[0, 0] = 1  # the first prefix token is the CLS token; drop the others
    mean = member / member.sum(0).clamp_min(1)
    return mean.mT @ attention @ member


class Looks:
    """Views of one model's layers, collected image by image. ``data`` packs them.

    Args:
        model: a model in eval mode.
        budget: resolution of the attention.
        truths: for each image, the class of each pixel, ``(H, W)``, or None if unknown.
        stored: whether attention and masks are stored; False for a model that the page runs.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: AttentionBudget,
        truths: Sequence[Tensor | None] = (),
        stored: bool = True,
    ) -> None:
        self.truths, self.stored = truths, stored
        self.model, self.budget, self.layers = model, budget, find_layers(model)
        self.layout: TokenLayout | None = None  # layout of the last image
        self.no_attention: str | None = None  # reason why a layer has no attention map
        self.blocks: dict[int, list[Tensor]] = {}
        self.cls: dict[int, list[Tensor]] = {}
        self.has_code = any("tap_code" in layer.taps() for layer in self.layers.values())
        self.predicted: list[list[tuple[int, float]]] = []
        self.segmented: list[Example] = []

    @torch.inference_mode()
    def look(self, batch: dict) -> None:
        """Add a batch, one image at a time, because attention matrices are large."""
        offered = {tap for layer in self.layers.values() for tap in layer.taps()}
        with read_taps(self.model, {"tap_w": self._w} if "tap_w" in offered else {}):
            for i in range(len(batch["inputs"])):
                sample = {key: value[i : i + 1] for key, value in batch.items()}
                inputs = self.model.data_preprocessor(sample)
                self.layout = layout_of(self.model, inputs["inputs"])
                out = self.model(**inputs)
                if self.model.is_classifier:
                    scores, classes = out.cpu().double().softmax(-1)[0].topk(min(TOP_CLASSES, out.shape[-1]))
                    self.predicted.append(list(zip(classes.tolist(), scores.tolist())))
        if isinstance(self.model, Segmentation):
            self.segmented += examples_of(self.model, batch, chosen_layer(self.model.head, None))

    def _w(self, layer: int, w: Tensor) -> None:
        if self.layout is None:
            return
        attention = self.layers[layer].attention(w, self.layout)
        if attention is None:
            self.no_attention = no_attention(self.layers[layer], self.layers[layer].maps(w, self.layout))
            return
        first, *grid = self.layout
        attention = attention[0].float().cpu()
        self.blocks.setdefault(layer, []).append(block_attention(attention, first, tuple(grid), self.budget.side))
        if first:
            self.cls.setdefault(layer, []).append(attention[:, 0, first:])

    def data(self, layer: int) -> dict[str, Any]:
        """Return the views of a layer, counted from 0; None for undefined views."""
        views: dict[str, Any] = {"attention": None, "masks": None}
        if layer in self.blocks and self.stored:
            blocks = torch.stack(self.blocks[layer])  # (B, K, 1 + n, 1 + n)
            views["attention"] = pack(blocks, self.budget.bits, power=2, groups=blocks.shape[0] * blocks.shape[1])
        if layer in self.cls:
            cls = torch.stack(self.cls[layer])  # (B, K, N)
            masks = attention_masks(cls)
            if self.stored:
                views["masks"] = pack(masks.float())
            views["best"] = [self._best(*pair) for pair in zip(masks, self.truths)]
        return views

    def scale(self) -> float:
        """Return the end of the color scale of all maps, in multiples of uniform attention.

        The end is the maps' 0.995 quantile, rounded up to 1, 2 or 5 x 10^i, at least 2, at most the number of tokens.
        """
        if not self.blocks:
            return 2.0
        tokens, generator = self.layout.prefix + math.prod(self.layout[1:]), torch.Generator().manual_seed(0)
        times = []
        for maps in self.blocks.values():  # sample the values of large maps
            entries = torch.stack(maps)[..., 1:].flatten() * tokens / self.budget.side**2
            picked = torch.randint(len(entries), (SAMPLED,), generator=generator)
            times.append(entries if len(entries) <= SAMPLED else entries[picked])
        high = torch.cat(times).double().quantile(0.995, interpolation="higher").item()
        power = 10.0 ** math.floor(math.log10(max(high, 1e-9)))
        end = next(m * power for m in (1, 2, 5, 10) if m * power >= high * (1 - 1e-6))
        return min(max(end, 2.0), max(tokens, 2.0))

    def _best(self, masks: Tensor, truth: Tensor | None) -> list[dict[str, Any]] | None:
        """Return, for each class in an image, the head (from 0) whose mask ``(K, N)`` has the highest IoU."""
        if truth is None:
            return None
        maps = masks.unflatten(-1, self.layout[1:]).float()
        large = F.interpolate(maps[None], truth.shape, mode="nearest-exact")[0].bool()
        return [overlap._asdict() for overlap in best_heads(large, truth)]

    def undefined(self) -> dict[str, str]:
        """Return the reason for each view that the model does not define."""
        name, reasons = name_of(self.model), {}
        first = next(iter(self.layers.values()))
        if not self.blocks:
            reason = NO_GRID if self.layout is None else self.no_attention or no_attention(first)
            reasons["attention"] = f"{name} has no attention map: {reason}."
        if not self.cls:
            reasons["cls"] = f"{name} has no CLS token in its layers." if self.blocks else reasons["attention"]
        if not self.has_code:
            computes = "layers compute" if first.sparsify is None else f"{type(first.sparsify).__name__} computes"
            reasons["code"] = f"{name} has no sparse code: its {computes} none."
        if all(layer.subspaces() is None for layer in self.layers.values()):
            reasons["subspaces"] = f"{name} has no subspaces: R\u1d9c is not defined."
        if not self.predicted and not self.segmented:
            reasons["classes"] = f"{type(self.model).__name__} predicts no classes."
        return reasons
