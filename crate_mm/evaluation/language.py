"""Loss of a language model. Shapes: B windows."""

import math
from typing import ClassVar

from torch import Tensor

from ..io.log import print_log
from ..registry import METRICS
from .metrics import SampleMetric


@METRICS.register_module()
class TokenLoss(SampleMetric):
    """Mean cross entropy over all tokens in nats (``loss``), and bits per byte (``bits_per_byte``).

    The mean over tokens depends on the tokenizer; bits per byte do not. They are ``loss / ln 2 x tokens / bytes``, with
    the numbers of tokens and bytes of the whole dataset. If the dataset does not state these numbers (see ``Windows``),
    bits per byte are omitted, and the log says so.
    """

    default_prefix = "eval"
    rules: ClassVar[dict[str, str]] = {"loss": "less", "bits_per_byte": "less"}

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Store one row per window from batches of ``{nats (B,), labels (B,), sample_idx (B,)}``, on their device."""
        self.results += [{key: batch[key] for key in ("sample_idx", "nats", "labels")} for batch in data_samples]

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{loss, bits_per_byte}`` from rows with one entry per window."""
        loss = (samples["nats"].double().sum() / samples["labels"].sum()).item()
        data = self.dataset_meta or {}
        if not data.get("tokens") or not data.get("bytes"):
            print_log("eval/bits_per_byte is omitted: the number of bytes of the text is unknown", "current")
            return {"loss": loss}
        return {"loss": loss, "bits_per_byte": loss / math.log(2) * data["tokens"] / data["bytes"]}
