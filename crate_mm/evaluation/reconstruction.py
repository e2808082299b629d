"""Reconstruction loss of a masked autoencoder. Shapes: B images."""

from typing import ClassVar

from torch import Tensor

from ..registry import METRICS
from .metrics import SampleMetric


@METRICS.register_module()
class ReconstructionLoss(SampleMetric):
    """Mean over samples of the loss of the masked patches, in squared units of the predicted pixels.

    Losses with and without normalized target pixels (``norm_pix_loss``) are not comparable.
    """

    default_prefix = "eval"
    rules: ClassVar[dict[str, str]] = {"loss": "less"}

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Store one row per sample from batches of ``{loss (B,), sample_idx (B,)}``, on their device."""
        self.results += [{"sample_idx": batch["sample_idx"], "loss": batch["loss"]} for batch in data_samples]

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{loss}`` from rows with one entry per sample."""
        return {"loss": samples["loss"].double().mean().item()}
