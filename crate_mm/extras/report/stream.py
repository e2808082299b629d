"""Statistics of a model over many images: measures by layer, use of dictionary atoms.

Shapes: B images, N tokens, m atoms of the dictionary, C classes.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ...analysis.codes import atom_usage, zero_reasons
from ...analysis.gather import measure_layers
from ...analysis.taps import find_layers, layout_of, read_taps
from ...models.layers import ISTA
from .spread import Spreads

MAX_CLASSES = 20  # maximum number of classes whose codes are compared: the first classes that occur
TOP = 6  # images listed for an atom by its largest entries, and uses listed around its median entry
SAMPLE = 64  # random uses of an atom from which the uses around the median are taken
LISTED = 12  # number of most-used atoms, and of least-used atoms, that are listed if not all atoms are


class ClassMeans:
    """Means of vectors by class, for the classes in ``classes``."""

    def __init__(self, classes: list[int]) -> None:
        self.classes = classes  # shared; grows as labels occur
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def update(self, vectors: Tensor, labels: list[int]) -> None:
        """Add vectors ``(B, n)``."""
        vectors, label_of = vectors.cpu().double(), torch.tensor(labels)
        for label in set(labels).intersection(self.classes):
            members = vectors[label_of == label]
            self.sums[label] = self.sums.get(label, 0) + members.sum(0)
            self.counts[label] = self.counts.get(label, 0) + len(members)

    def means(self) -> Tensor | None:
        """Return the means, ``(C, n)``, in the order of the labels; None without labels."""
        present = sorted(self.sums)
        return torch.stack([self.sums[c] / self.counts[c] for c in present]) if present else None


class AtomUsage:
    """How often each atom of one layer is used, by which classes, and by which images and tokens most."""

    def __init__(self, classes: list[int]) -> None:
        self.images, self.use, self.amount = 0, 0.0, 0.0
        self.by_class = ClassMeans(classes)
        self.largest: tuple[Tensor, Tensor, Tensor] | None = None  # values, positions, tokens: (TOP, m) each
        self.sample: tuple[Tensor, ...] | None = None  # random keys, values, positions, tokens: (SAMPLE, m) each
        self.generator = torch.Generator().manual_seed(0)

    def update(self, code: Tensor, positions: list[int], labels: list[int], first: int) -> None:
        """Add codes ``(B, N, m)``. Tokens before index ``first`` are not patches: they count, but are never listed."""
        use = atom_usage(code).cpu()  # convert to float64 on the CPU: not every device has float64
        self.images += len(code)
        self.use += use.double().sum(0)
        self.amount += code.abs().float().mean(1).cpu().double().sum(0)
        self.by_class.update(use, labels)
        entries = code[:, first:].detach().abs().float().cpu()  # (B, n, m)
        values, tokens = entries.max(1)
        where = torch.tensor(positions)
        self.largest = _largest(self.largest, (values, where[:, None].expand(tokens.shape), tokens), TOP)
        B, n, m = entries.shape
        flat = entries.flatten(0, 1)
        keys = torch.rand(flat.shape, generator=self.generator).masked_fill_(flat == 0, -1)
        tokens = torch.arange(n).repeat(B)[:, None].expand(B * n, m)
        self.sample = _largest(
            self.sample, (keys, flat, where.repeat_interleave(n)[:, None].expand(B * n, m), tokens), SAMPLE
        )

    def listed(self) -> tuple[list[int], list[int]]:
        """Return the most-used atoms, and the least-used atoms among those with any use."""
        order = self.use.argsort(descending=True, stable=True).tolist()
        used = [i for i in order if self.use[i] > 0]
        most = used[:LISTED]
        return most, [i for i in reversed(used) if i not in most][:LISTED]

    def top(self, atom: int) -> list[tuple[int, int, float]]:
        """Return (position, patch, entry) of an atom's largest entries, at most one per image."""
        rows = zip(*(table[:, atom].tolist() for table in self.largest))
        return [(position, token, value) for value, position, token in rows if value > 0]

    def middle(self, atom: int) -> list[tuple[int, int, float]]:
        """Return (position, patch, entry) of the uses around the median of a random sample of an atom's uses."""
        rows = zip(*(table[:, atom].tolist() for table in self.sample))
        uses = sorted((value, position, token) for key, value, position, token in rows if key >= 0)
        start = max((len(uses) - TOP) // 2, 0)
        return [(position, token, value) for value, position, token in reversed(uses[start : start + TOP])]


def _largest(tables: tuple[Tensor, ...] | None, rows: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Join old and new tables ``(n, m)``; in each column, keep the ``count`` largest values of the first table, and the
    values of the other tables in the same rows."""
    if tables is not None:
        rows = tuple(torch.cat(pair) for pair in zip(tables, rows))
    order = rows[0].argsort(dim=0, descending=True, stable=True)[:count]
    return tuple(row.gather(0, order) for row in rows)


class StreamStats:
    """Statistics of a model over many images.

    Attributes:
        spreads: the measures.
        codes: atom usage by layer, counted from 0.
        zeros: counts of ``zero_reasons`` by layer, for layers with an ISTA step.
        entries: number of entries of the codes by layer.
        tokens: number of tokens of an image.
        classes: labels that are compared.
        images, labelled, right: number of images; for a classifier, also of labeled and of correctly classified images.
    """

    def __init__(self) -> None:
        self.spreads = Spreads()
        self.classes: list[int] = []
        self.codes: dict[int, AtomUsage] = {}
        self.zeros: dict[int, Tensor] = {}
        self.entries: dict[int, int] = {}
        self.tokens: int | None = None
        self.images = self.labelled = self.right = 0


@torch.inference_mode()
def collect_stats(
    model: nn.Module,
    batches: Iterable[dict],
    eps_squared: float = 0.01,
    unit_length: bool = True,
    positions: Sequence[int] | None = None,
) -> StreamStats:
    """Measure a model in eval mode on a loader's batches. Memory does not grow with the number of batches.

    Args:
        model: a model with its preprocessor.
        batches: batches with ``inputs``, and optionally ``labels`` and ``sample_idx``.
        eps_squared, unit_length: arguments of ``measure_layers``.
        positions: positions of the samples in their dataset, for batches without ``sample_idx``.

    Raises:
        ValueError: the model has no readable layers, or defines none of the measures.
    """
    stats, layers = StreamStats(), find_layers(model)
    prefix = 0  # tokens before the patches; 0 for a model without a layout
    batch_of: dict[str, list[int]] = {}

    def read_code(layer: int, code: Tensor) -> None:
        usage = stats.codes.setdefault(layer, AtomUsage(stats.classes))
        usage.update(code, batch_of["positions"], batch_of["labels"], prefix)
        stats.entries[layer] = stats.entries.get(layer, 0) + code.numel()

    def read_out(layer: int, z: Tensor) -> None:
        stats.tokens = z.shape[1]

    def read_ista(layer: int, ista: ISTA, inputs: tuple[Tensor], code: Tensor) -> None:
        (x,) = inputs
        D = ista.dictionary
        counts = zero_reasons(x, x + ista.step_size * (x - x @ D.mT) @ D, code).cpu()
        stats.zeros[layer] = stats.zeros.get(layer, 0) + counts

    offered = {tap for layer in layers.values() for tap in layer.taps()}
    readers = {tap: read for tap, read in (("tap_code", read_code), ("tap_out", read_out)) if tap in offered}
    steps = {layer: step.sparsify for layer, step in layers.items() if type(step.sparsify) is ISTA}
    with (
        ExitStack() as hooks,
        measure_layers(model, eps_squared=eps_squared, unit_length=unit_length, into=stats.spreads),
        read_taps(model, readers),
    ):
        for layer, ista in steps.items():
            hooks.callback(ista.register_forward_hook(partial(read_ista, layer)).remove)
        for batch in batches:
            count = len(batch["inputs"])
            has_classes = "labels" in batch and batch["labels"].ndim == 1  # masks have more dimensions
            labels = batch["labels"].tolist() if has_classes else [-1] * count
            start = stats.images
            if "sample_idx" in batch:
                batch_positions = batch["sample_idx"].tolist()
            else:
                batch_positions = list((positions or range(start + count))[start : start + count])
            batch_of.update(labels=labels, positions=batch_positions)
            for label in labels:
                if label >= 0 and label not in stats.classes and len(stats.classes) < MAX_CLASSES:
                    stats.classes.append(label)
            inputs = model.data_preprocessor(batch)
            layout = layout_of(model, inputs["inputs"])
            prefix = 0 if layout is None else layout.prefix
            out = model(**inputs)
            stats.images += count
            if model.is_classifier:
                stats.labelled += sum(label >= 0 for label in labels)
                stats.right += sum(a == b for a, b in zip(out.argmax(-1).tolist(), labels))
    return stats
