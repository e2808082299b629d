"""k nearest neighbors in a backbone's features. Shapes: n training and m test images, d dimensions."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.dist import get_dist_info
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..registry import DATASETS, FUNCTIONS, METRICS
from .metrics import SampleMetric, gather


def features_of(model: nn.Module, batches: Iterable[dict]) -> Iterator[tuple[dict, Tensor]]:
    """Yield batches with their features ``(B, d)``, float32 on the CPU, computed in eval mode."""
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            with torch.inference_mode():
                features = model(**model.data_preprocessor(batch), mode="features").float().cpu()
            yield batch, features
    finally:
        model.train(was_training)


def extract_features(model: nn.Module, batches: Iterable[dict]) -> tuple[Tensor, Tensor, Tensor]:
    """Run a task's backbone over a loader's batches in eval mode.

    Returns:
        Features ``(n, d)`` in float32, labels ``(n,)`` and sample positions ``(n,)``, on the CPU.

    Raises:
        ValueError: a batch does not have one label and one position per sample.
    """
    rows = []
    for batch, features in features_of(model, map(_require_labels, batches)):
        rows.append((features, batch["labels"], batch["sample_idx"]))
    return tuple(map(torch.cat, zip(*rows)))


def _require_labels(batch: dict) -> dict:
    shapes = {key: tuple(batch[key].shape) for key in ("labels", "sample_idx") if key in batch}
    if [len(shapes.get(key, ())) for key in ("labels", "sample_idx")] != [1, 1]:
        raise ValueError(
            f"k-NN needs the class of each sample: expected labels (B,) and sample_idx (B,), got "
            f"{', '.join(f'{key} {shape}' for key, shape in shapes.items()) or 'neither'}"
        )
    return batch


@torch.inference_mode()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int = 20,
    chunk: int = 1024,
    temperature: float | None = None,
) -> Tensor:
    """Classify by the votes of the k training images with the largest cosine similarity; ties go to the smallest class.

    Args:
        train_features: ``(n, d)``.
        train_labels: ``(n,)``, non-negative.
        test_features: ``(m, d)``.
        k: number of neighbors that vote.
        chunk: number of test images compared at a time; the memory is ``chunk * n`` elements.
        temperature: T, above 0: a neighbor of similarity s has the weight ``exp(s / T)`` (Wu et al., CVPR 2018). None:
            all weights are 1.

    Returns:
        Predicted labels ``(m,)``.

    Raises:
        ValueError: ``k`` is not between 1 and n, or the temperature is not above 0.
    """
    check_vote(k, temperature, len(train_features))
    num_classes = int(train_labels.max()) + 1
    predictions = []
    for similarities, neighbors in _most_similar(train_features, test_features, k, chunk):
        votes = F.one_hot(train_labels[neighbors], num_classes)
        if temperature is not None:
            votes = votes * (similarities / temperature).softmax(dim=1)[..., None]
        predictions.append(votes.sum(dim=1).argmax(dim=1))
    return torch.cat(predictions)


def _most_similar(
    features: Tensor, queries: Tensor, k: int, chunk: int, itself: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each chunk of queries the k largest cosine similarities and their rows, as for ``nearest``."""
    base = F.normalize(features, dim=1)
    for start in range(0, len(queries), chunk):
        similarities = F.normalize(queries[start : start + chunk], dim=1) @ base.T
        if itself is not None:
            own = itself[start : start + chunk]
            in_base = (own >= 0).nonzero().flatten()
            similarities[in_base, own[in_base]] = -torch.inf
        yield similarities.topk(k, dim=1)


def check_vote(k: int, temperature: float | None, count: int) -> None:
    """Raise ``ValueError`` unless k is in 1..``count``, the number of training images, and the temperature is valid."""
    if not 1 <= k <= count:
        raise ValueError(f"k must be between 1 and the {count} training images, got {k}")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be a number above 0, or None, got {temperature!r}")


@METRICS.register_module()
class KNNMetric(SampleMetric):
    """Top-1 accuracy in % of k-NN classification in a task's features, with a bank of training samples.

    The bank's features are computed at each evaluation, with the evaluated weights. They do not depend on the number of
    processes, because the bank's batches are fixed and distributed over the processes. The features of the evaluated
    samples are computed in addition to the task's predictions. Rank 0 holds all features.

    Args:
        bank: dataset whose samples have ``labels`` and ``sample_idx``, or its config. In a config, the default is the
            training data with the transforms of the evaluation (set by ``resolve_config``).
        k, temperature: as for ``knn_predict``.
        batch_size, num_workers: settings of the bank's loader. In a config, the defaults are the evaluation loader's.

    Raises:
        ValueError: ``bank`` is None, or as for ``knn_predict``.
    """

    default_prefix = "eval"
    rules: ClassVar[dict[str, str]] = {"knn_top1": "greater"}

    def __init__(
        self,
        bank: dict | Dataset | None = None,
        k: int = 20,
        temperature: float | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if bank is None:
            raise ValueError(
                "KNNMetric has no training samples, because the config has no train_dataloader: set "
                "bank=dict(type='ClassificationDataset', source=...)"
            )
        self.bank = DATASETS.build(bank) if isinstance(bank, dict) else bank
        check_vote(k, temperature, len(self.bank))
        self.k, self.temperature, self.batch_size, self.num_workers = k, temperature, batch_size, num_workers
        self.task: nn.Module | None = None  # the Runner sets it

    def process(self, data_batch: dict, data_samples: list) -> None:
        """Store ``{features (B, d), label (B,), sample_idx (B,)}``, one row per sample, on the CPU."""
        keys = ("features", "label", "sample_idx")
        self.results.append(dict(zip(keys, extract_features(self.task, [data_batch]))))

    def evaluate(self, size: int) -> dict[str, float]:
        """Compute the features of the bank, gather all rows on rank 0, and compute the metric there."""
        gathered = gather(self._local_bank())
        if gathered is not None:
            parts = [part for part in gathered if part]
            rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            labeled = rows["label"] >= 0
            order = rows["sample_idx"][labeled].argsort(stable=True)  # ties must not depend on the number of processes
            self.bank_rows = rows["features"][labeled][order], rows["label"][labeled][order]
        metrics = super().evaluate(size)
        self.bank_rows = None
        return metrics

    def _local_bank(self) -> dict[str, Tensor]:
        """Return this process's rows of the bank; an empty dict if there are more processes than batches."""
        rank, world_size = get_dist_info()
        batches = torch.arange(len(self.bank)).split(self.batch_size)[rank::world_size]
        if not batches:
            return {}
        loader = DataLoader(
            self.bank,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.num_workers,
            collate_fn=FUNCTIONS.get("collate"),
            worker_init_fn=FUNCTIONS.get("init_worker"),
        )
        return dict(zip(("features", "label", "sample_idx"), extract_features(self.task, loader)))

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{knn_top1}`` of the samples that have a label; an empty dict if no sample has a label."""
        labeled, features = samples["label"] >= 0, samples.pop("features")  # popped to free the memory
        if not labeled.any():
            return {}
        predictions = knn_predict(*self.bank_rows, features[labeled], self.k, temperature=self.temperature)
        return {"knn_top1": 100 * (predictions == samples["label"][labeled]).double().mean().item()}


@torch.inference_mode()
def nearest(
    features: Tensor, queries: Tensor, k: int, itself: Tensor | None = None, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return the k rows of ``features`` with the largest cosine similarity to each query, the most similar first.

    Args:
        features: ``(n, d)``.
        queries: ``(m, d)``.
        k: number of rows per query.
        itself: ``(m,)``, the row of ``features`` that is the query itself, to exclude it; -1 if there is no such row.
        chunk: number of queries compared at a time; the memory is ``chunk * n`` elements.

    Returns:
        Rows ``(m, k)`` and their similarities ``(m, k)``.

    Raises:
        ValueError: there are fewer than k other rows.
    """
    others = len(features) - (itself is not None and bool((itself >= 0).any()))
    if not 1 <= k <= others:
        raise ValueError(f"k must be between 1 and the {others} images to choose from, got {k}")
    similarities, rows = map(torch.cat, zip(*_most_similar(features, queries, k, chunk, itself)))
    return rows, similarities
