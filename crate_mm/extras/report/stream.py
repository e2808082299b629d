"""Many images in a stream: the measures of each layer, who uses a dictionary's directions, whose energy is where.

Shapes: B images, N tokens, m directions of the dictionary, K heads, C classes.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ...analysis.codes import atom_usage, code_overlap, head_energy
from ...analysis.gather import measure_layers
from ...analysis.taps import find_layers, layout_of, read_taps
from .spread import Spreads

MAX_CLASSES = 20  # whose codes and energies are compared: the first that come
TOP = 6  # images that use a direction most
LISTED = 12  # directions of which these are told, of the most and of the least used


class ClassMeans:
    """The mean of vectors by class, of ``MAX_CLASSES`` classes."""

    def __init__(self, classes: list[int]) -> None:
        self.classes = classes  # grows with the labels that come, and is shared
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def update(self, vectors: Tensor, labels: list[int]) -> None:
        """Take in vectors ``(B, n)``."""
        vectors, of = vectors.cpu().double(), torch.tensor(labels)
        for label in set(labels).intersection(self.classes):
            mine = vectors[of == label]
            self.sums[label] = self.sums.get(label, 0) + mine.sum(0)
            self.counts[label] = self.counts.get(label, 0) + len(mine)

    def means(self) -> Tensor | None:
        """``(C, n)``, in the order of the labels; None without labels."""
        present = sorted(self.sums)
        return torch.stack([self.sums[c] / self.counts[c] for c in present]) if present else None


class AtomUsage:
    """Of one layer: how often each direction is used, by which class, and which images and tokens use it most."""

    def __init__(self, classes: list[int]) -> None:
        self.images, self.use, self.amount = 0, 0.0, 0.0
        self.by_class = ClassMeans(classes)
        self.values = self.positions = self.tokens = None  # (TOP, m) each

    def update(self, code: Tensor, positions: list[int], labels: list[int], first: int) -> None:
        """Take in codes ``(B, N, m)``; tokens before ``epoch_samples`` are no patches, and are counted but not shown."""
        use = atom_usage(code).cpu()  # before it is widened: not every device has float64
        self.images += len(code)
        self.use += use.double().sum(0)
        self.amount += code.abs().float().mean(1).cpu().double().sum(0)
        self.by_class.update(use, labels)
        values, tokens = code[:, first:].abs().max(1)
        where = torch.tensor(positions)[:, None].expand(tokens.shape)
        now = (values.float().cpu(), where, tokens.cpu())
        if self.values is not None:
            before = (self.values, self.positions, self.tokens)
            now = tuple(torch.cat(pair) for pair in zip(before, now))
        order = now[0].argsort(dim=0, descending=True, stable=True)[:TOP]
        self.values, self.positions, self.tokens = (part.gather(0, order) for part in now)

    def listed(self) -> tuple[list[int], list[int]]:
        """The most used directions, and the least used ones of those that are used at all."""
        order = self.use.argsort(descending=True, stable=True).tolist()
        used = [i for i in order if self.use[i] > 0]
        most = used[:LISTED]
        return most, [i for i in reversed(used) if i not in most][:LISTED]

    def top(self, direction: int) -> list[tuple[int, int, float]]:
        """(position, patch, entry) of the images that use a direction most, in each the patch that does."""
        rows = zip(*(part[:, direction].tolist() for part in (self.positions, self.tokens, self.values)))
        return [(position, token, value) for position, token, value in rows if value > 0]

    def overlap(self) -> Tensor | None:
        means = self.by_class.means()
        return None if means is None else code_overlap(means)


class StreamStats:
    """What many images leave: ``spreads``, and by layer, counted from 0, ``codes`` and ``energies``; ``classes`` are
    the labels compared; of ``labelled`` images ``right`` are told right, where the model predicts classes."""

    def __init__(self) -> None:
        self.spreads = Spreads()
        self.classes: list[int] = []
        self.codes: dict[int, AtomUsage] = {}
        self.energies: dict[int, ClassMeans] = {}
        self.images = self.labelled = self.right = 0


@torch.inference_mode()
def collect_stats(
    model: nn.Module,
    batches: Iterable[dict],
    eps_squared: float = 0.01,
    unit_length: bool = True,
    positions: Sequence[int] | None = None,
) -> StreamStats:
    """Measure a model in eval mode on batches, as a loader gives them. Memory does not grow with their number.

    Args:
        model: with its preprocessor.
        batches: with ``inputs``, and ``labels`` and ``sample_idx`` where there are such.
        eps_squared, unit_length: as for ``measure_layers``.
        positions: of the samples in their dataset, for batches without ``sample_idx``.

    Raises:
        ValueError: the model has no layer that can be read, or none of the measures.
    """
    found, layers = StreamStats(), find_layers(model)
    prefix = 0  # tokens before the patches; 0 for a model that has no layout
    batch_of: dict[str, list[int]] = {}

    def read_code(layer: int, code: Tensor) -> None:
        use = found.codes.setdefault(layer, AtomUsage(found.classes))
        use.update(code, batch_of["positions"], batch_of["labels"], prefix)

    def read_w(layer: int, w: Tensor) -> None:
        subspaces = layers[layer].subspaces()
        if subspaces is not None:
            energy = found.energies.setdefault(layer, ClassMeans(found.classes))
            energy.update(head_energy(w, subspaces.num_heads), batch_of["labels"])

    offered = {tap for layer in layers.values() for tap in layer.taps()}
    readers = {tap: read for tap, read in (("tap_code", read_code), ("tap_w", read_w)) if tap in offered}
    with (
        measure_layers(model, eps_squared=eps_squared, unit_length=unit_length, into=found.spreads),
        read_taps(model, readers),
    ):
        for batch in batches:
            count = len(batch["inputs"])
            labels = batch["labels"].tolist() if "labels" in batch else [-1] * count
            start = found.images
            if "sample_idx" in batch:
                here = batch["sample_idx"].tolist()
            else:
                here = list((positions or range(start + count))[start : start + count])
            batch_of.update(labels=labels, positions=here)
            for label in labels:
                if label >= 0 and label not in found.classes and len(found.classes) < MAX_CLASSES:
                    found.classes.append(label)
            found.spreads.positions = here
            inputs = model.data_preprocessor(batch)
            layout = layout_of(model, inputs["inputs"])
            prefix = 0 if layout is None else layout.prefix
            out = model(**inputs)
            found.images += count
            if model.is_classifier:
                told = out.argmax(-1).tolist()
                found.labelled += sum(label >= 0 for label in labels)
                found.right += sum(a == b for a, b in zip(told, labels))
    return found
