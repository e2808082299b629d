"""Metrics with one row per sample. Shapes: B images, n samples."""

from abc import abstractmethod
from functools import cache
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.dist import broadcast_object_list, get_world_size, is_distributed, is_main_process
from mmengine.evaluator import BaseMetric
from torch import Tensor

from ..registry import METRICS


class SampleMetric(BaseMetric):
    """Metric computed from one row per sample; subclasses append dicts of rows to ``results``.

    Padding to equal lengths can give one sample to several processes. Rows are keyed by ``sample_idx``, so each sample
    counts once.

    Attributes:
        samples: after an evaluation, the rows of all processes, sorted by ``sample_idx``, on rank 0; empty on the other
            ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples: dict[str, Tensor] = {}

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the rows of all processes on rank 0, compute the metrics there, and broadcast them."""
        keys = self.results[0].keys() if self.results else ()
        local = {key: torch.cat([row[key] for row in self.results]).cpu() for key in keys}
        self.results.clear()
        gathered = gather(local)
        outcome: list[dict[str, float] | Exception | None] = [None]
        if gathered is not None:
            try:
                outcome[0] = self._compute([part for part in gathered if part])  # a process may have had no batch
            except Exception as error:  # broadcast, as the other ranks wait for the metrics
                outcome[0] = error
        broadcast_object_list(outcome)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return {f"{self.prefix}/{key}": value for key, value in outcome[0].items()}

    def _compute(self, gathered: list[dict[str, Tensor]]) -> dict[str, float]:
        if not gathered:
            raise ValueError("nothing to evaluate: the data have no batch")
        rows = {key: torch.cat([part[key] for part in gathered]) for key in gathered[0]}
        order = rows["sample_idx"].argsort(stable=True)
        ids = rows["sample_idx"][order]
        first = order[torch.cat([torch.tensor([True]), ids[1:] != ids[:-1]])]
        self.samples = {key: value[first] for key, value in rows.items()}
        return self.compute_metrics(self.samples)

    @abstractmethod
    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return the metrics by name, from rows with one entry per sample."""


@METRICS.register_module()
class ClassificationMetric(SampleMetric):
    """Mean top-1 and top-5 accuracy in %, mean cross entropy (without label smoothing), and mean per-class accuracy.

    Samples without a label (-1) are predicted but not counted.

    Args:
        topk: the k of the accuracies; values above the number of classes are omitted.

    Attributes:
        samples: ``sample_idx, label, loss (n,)`` and ``top, score (n, k)``, the k most likely classes and their
            probabilities.
        rules: whether 'greater' or 'less' is better, for each metric.
    """

    default_prefix = "eval"
    rules: ClassVar[dict[str, str]] = {"mean_class": "greater", "loss": "less"}

    def __init__(self, topk: int | tuple[int, ...] = (1, 5)) -> None:
        super().__init__()
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or not all(isinstance(k, int) and k >= 1 for k in self.topk):
            raise ValueError(f"topk must be positive integers, got {topk!r}")
        self.rules = {**self.rules, **{f"top{k}": "greater" for k in self.topk}}

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Store one row per sample from batches of ``{logits (B, classes), labels (B,), sample_idx (B,)}``."""
        for batch in data_samples:
            log_p = F.log_softmax(batch["logits"].float(), dim=-1)
            score, top = log_p.exp().topk(min(max(self.topk), log_p.shape[1]))
            self.results.append(
                {
                    "sample_idx": batch["sample_idx"],
                    "label": batch["labels"],
                    "loss": F.nll_loss(log_p, batch["labels"], ignore_index=-1, reduction="none"),
                    "top": top,
                    "score": score,
                }
            )

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{top1, top5, mean_class, loss}`` of the samples that have a label; an empty dict without labels."""
        labeled = samples["label"] >= 0
        if not labeled.any():
            return {}
        samples = {key: value[labeled] for key, value in samples.items()}
        hit = samples["top"] == samples["label"][:, None]
        ks = [k for k in self.topk if k <= hit.shape[1]]
        metrics = {f"top{k}": 100 * hit[:, :k].any(dim=1).double().mean().item() for k in ks}
        accuracy, count = per_class_accuracy(samples)
        metrics["mean_class"] = accuracy[count > 0].mean().item()
        return {**metrics, "loss": samples["loss"].double().mean().item()}


def gather(local: dict[str, Tensor]) -> list[dict[str, Tensor]] | None:
    """Return the rows of all processes on rank 0, and None on the other ranks."""
    if not is_distributed():
        return [local]
    gathered = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(local, gathered, dst=0, group=_hosts(dist.group.WORLD))
    return gathered


@cache
def _hosts(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return a gloo group of all processes, created once: objects are gathered on the CPU, not by NCCL."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


def per_class_accuracy(samples: dict[str, Tensor], num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return each class's top-1 accuracy in % (NaN without samples) and number of samples, both ``(classes,)``."""
    label, hit = samples["label"], samples["top"][:, 0] == samples["label"]
    count = torch.bincount(label, minlength=num_classes or 0)
    return 100 * torch.bincount(label, hit.double(), minlength=num_classes or 0) / count, count


def confusion_matrix(samples: dict[str, Tensor], num_classes: int) -> Tensor:
    """Return the number of samples of class i (row) that are predicted as class j (column), ``(classes, classes)``."""
    pairs = samples["label"] * num_classes + samples["top"][:, 0]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
