"""Metrics of a segmentation, from integer counts of pixels. Shapes: B images, n samples, K classes, H x W pixels."""

from typing import ClassVar

import torch
from torch import Tensor

from ..registry import METRICS
from .metrics import SampleMetric


@METRICS.register_module()
class SegmentationMetric(SampleMetric):
    """Mean intersection over union (``miou``), class accuracy (``mean_class``), pixel accuracy (``pixel_acc``), in %.

    All three are computed from the confusion matrix of all labeled pixels of the data, not as means over images. A
    class that is absent from the masks and the predictions is omitted from ``miou``. A class that is absent from the
    masks is omitted from ``mean_class``. The counts are integers, so the metrics are the same on any number of
    processes.

    Attributes:
        samples: ``sample_idx (n,)`` and three int64 tensors ``(n, K)``, numbers of labeled pixels by class: correctly
            predicted (``right``), in the mask (``true``), and predicted (``predicted``).
    """

    default_prefix = "eval"
    rules: ClassVar[dict[str, str]] = {"miou": "greater", "mean_class": "greater", "pixel_acc": "greater"}

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Store one row per sample from batches of ``{predicted, labels (B, H, W), num_classes, sample_idx (B,)}``.

        Labels of ``num_classes`` or more are not counted.
        """
        for batch in data_samples:
            counts = count_pixels(batch["predicted"], batch["labels"], batch["num_classes"])
            true, predicted, right = counts.sum(2), counts.sum(1), counts.diagonal(dim1=1, dim2=2)
            self.results.append(
                {"sample_idx": batch["sample_idx"], "right": right, "true": true, "predicted": predicted}
            )

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{miou, mean_class, pixel_acc}``; an empty dict if no pixel has a label."""
        right, true, predicted = (samples[key].sum(0).double() for key in ("right", "true", "predicted"))
        if not true.any():
            return {}
        union, labelled = true + predicted - right, true > 0
        return {
            "miou": 100 * (right / union)[union > 0].mean().item(),
            "mean_class": 100 * (right / true)[labelled].mean().item(),
            "pixel_acc": 100 * (right.sum() / true.sum()).item(),
        }


def count_pixels(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return each image's confusion matrix ``(B, K, K)``, int64: pixels of class i (row) predicted as j (column).

    Args:
        predicted: classes ``(B, H, W)``, integers below K.
        labels: integers ``(B, H, W)``; pixels with a label of K or more are not counted.
        num_classes: K.
    """
    B, K = len(labels), num_classes
    image = torch.arange(B, device=labels.device)[:, None, None]
    pairs = (image * K + labels.long()) * K + predicted.long()
    return torch.bincount(pairs[labels < K], minlength=B * K * K).view(B, K, K)
