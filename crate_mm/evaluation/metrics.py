"""Metrics with one row a sample. Shapes: B images, n samples."""

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from torch import Tensor

from ..registry import METRICS


@METRICS.register_module()
class ClassificationMetric(BaseMetric):
    """Top-1 and top-5 accuracy in %, and cross entropy (without label smoothing), each the mean over samples.

    A sample that more than one process saw, as padding to equal lengths does, counts once: rows are keyed by
    ``sample_idx``. After an evaluation ``samples`` holds the rows of all processes, sorted by that key:
    ``sample_idx, label, loss (n,)`` and ``top, score (n, k)``, the k most likely classes and their probabilities.

    Args:
        topk: the k of the accuracies; those above the number of classes are left out.
    """

    default_prefix = "eval"

    def __init__(self, topk: tuple[int, ...] = (1, 5)) -> None:
        super().__init__()
        self.topk = tuple(topk)
        self.samples: dict[str, Tensor] = {}

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Keep a row a sample of ``{logits (B, classes), labels (B,), sample_idx (B,)}``, on its device."""
        for batch in data_samples:
            log_p = F.log_softmax(batch["logits"].float(), dim=-1)
            score, top = log_p.exp().topk(min(max(self.topk), log_p.shape[1]))
            self.results.append(
                {
                    "sample_idx": batch["sample_idx"],
                    "label": batch["labels"],
                    "loss": F.nll_loss(log_p, batch["labels"], reduction="none"),
                    "top": top,
                    "score": score,
                }
            )

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the rows of all processes and compute the metrics on every one of them."""
        local = {key: torch.cat([row[key] for row in self.results]).cpu() for key in self.results[0]}
        self.results.clear()
        gathered = all_gather_object(local)
        rows = {key: torch.cat([part[key] for part in gathered]) for key in local}
        order = rows["sample_idx"].argsort(stable=True)
        ids = rows["sample_idx"][order]
        first = order[torch.cat([torch.tensor([True]), ids[1:] != ids[:-1]])]
        self.samples = {key: value[first] for key, value in rows.items()}
        return {f"{self.prefix}/{key}": value for key, value in self.compute_metrics(self.samples).items()}

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{top1, top5, loss}`` of rows with one entry a sample."""
        hit = samples["top"] == samples["label"][:, None]
        ks = [k for k in self.topk if k <= hit.shape[1]]
        metrics = {f"top{k}": 100 * hit[:, :k].any(dim=1).double().mean().item() for k in ks}
        return {**metrics, "loss": samples["loss"].double().mean().item()}
