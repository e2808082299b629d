"""Metrics with one row a sample. Shapes: B images, n samples."""

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
    """A metric that is a function of rows, one a sample; a subclass appends dicts of them to ``results``.

    A sample that more than one process saw, as padding to equal lengths does, counts once: rows are keyed by
    ``sample_idx``. After an evaluation ``samples`` holds the rows of all processes, sorted by that key, in the first
    process; the others have its figures and keep no rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples: dict[str, Tensor] = {}

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the rows of all processes in the first one, and compute the metrics on every one of them there."""
        keys = self.results[0].keys() if self.results else ()
        local = {key: torch.cat([row[key] for row in self.results]).cpu() for key in keys}
        self.results.clear()
        gathered = gather(local)
        outcome: list[dict[str, float] | Exception | None] = [None]
        if gathered is not None:
            try:
                outcome[0] = self._compute([part for part in gathered if part])  # a process may have had no batch
            except Exception as error:  # which all must hear of, as they wait for the figures
                outcome[0] = error
        broadcast_object_list(outcome)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return {f"{self.prefix}/{key}": value for key, value in outcome[0].items()}

    def _compute(self, gathered: list[dict[str, Tensor]]) -> dict[str, float]:
        if not gathered:
            raise ValueError("there is nothing to evaluate: the data has no batch")
        rows = {key: torch.cat([part[key] for part in gathered]) for key in gathered[0]}
        order = rows["sample_idx"].argsort(stable=True)
        ids = rows["sample_idx"][order]
        first = order[torch.cat([torch.tensor([True]), ids[1:] != ids[:-1]])]
        self.samples = {key: value[first] for key, value in rows.items()}
        return self.compute_metrics(self.samples)

    @abstractmethod
    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """The metrics, by name, of rows with one entry a sample."""


@METRICS.register_module()
class ClassificationMetric(SampleMetric):
    """Top-1 and top-5 accuracy in %, cross entropy (without label smoothing), each the mean over samples, and the mean
    of the classes' top-1 accuracies.

    Samples without a label, which is then -1, are predicted and do not count.

    After an evaluation ``samples`` holds ``sample_idx, label, loss (n,)`` and ``top, score (n, k)``, the k most likely
    classes and their probabilities.

    ``rules`` says of each figure whether 'greater' or 'less' is better.

    Args:
        topk: the k of the accuracies; those above the number of classes are left out.
    """

    default_prefix = "eval"
    rules: ClassVar[dict[str, str]] = {"mean_class": "greater", "loss": "less"}

    def __init__(self, topk: int | tuple[int, ...] = (1, 5)) -> None:
        super().__init__()
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or not all(isinstance(k, int) and k >= 1 for k in self.topk):
            raise ValueError(f"topk needs whole numbers of at least 1, got {topk!r}")
        self.rules = {**self.rules, **{f"top{k}": "greater" for k in self.topk}}

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Keep a row a sample of ``{logits (B, classes), labels (B,), sample_idx (B,)}``, on its device."""
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
        """Return ``{top1, top5, mean_class, loss}`` of rows with one entry a sample; nothing if none has a label."""
        labelled = samples["label"] >= 0
        if not labelled.any():
            return {}
        samples = {key: value[labelled] for key, value in samples.items()}
        hit = samples["top"] == samples["label"][:, None]
        ks = [k for k in self.topk if k <= hit.shape[1]]
        metrics = {f"top{k}": 100 * hit[:, :k].any(dim=1).double().mean().item() for k in ks}
        accuracy, count = per_class_accuracy(samples)
        metrics["mean_class"] = accuracy[count > 0].mean().item()
        return {**metrics, "loss": samples["loss"].double().mean().item()}


def gather(local: dict[str, Tensor]) -> list[dict[str, Tensor]] | None:
    """The rows of all processes in the first one, and None in the others."""
    if not is_distributed():
        return [local]
    gathered = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(local, gathered, dst=0, group=_hosts(dist.group.WORLD))
    return gathered


@cache
def _hosts(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The processes by their hosts' network; on GPUs the group is made once, as NCCL gathers nothing to one process."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


def per_class_accuracy(samples: dict[str, Tensor], num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Top-1 accuracy in % of each class and the number of its samples, both ``(classes,)``; NaN without a sample."""
    label, hit = samples["label"], samples["top"][:, 0] == samples["label"]
    count = torch.bincount(label, minlength=num_classes or 0)
    return 100 * torch.bincount(label, hit.double(), minlength=num_classes or 0) / count, count


def confusion_matrix(samples: dict[str, Tensor], num_classes: int) -> Tensor:
    """How many samples of class i (row) are taken for class j (column), ``(classes, classes)``."""
    pairs = samples["label"] * num_classes + samples["top"][:, 0]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
