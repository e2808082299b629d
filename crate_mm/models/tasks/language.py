"""Causal language models. Shapes: B windows of a batch, N tokens of a window, V tokens of the vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import BACKBONES, MODELS
from ..backbone import check_backbone_contract
from .base import Task

IGNORED = -100  # label of a position whose next token does not count


@MODELS.register_module()
class LanguageModel(Task):
    """A causal language model: a backbone, and the mean cross entropy of the next tokens.

    Args:
        backbone: config of ``BACKBONES`` or a ``Backbone`` of token ids that defines ``logits(tokens)``,
            ``vocab_size`` and ``context_length``.

    Batches have ``inputs``, token ids ``(B, N)``, ``labels``, the next tokens ``(B, N)``, and ``sample_idx``, each
    window's position in its dataset ``(B,)``. Labels of -100 do not count. Further entries have no effect.
    """

    headline = ("eval/loss", "less")
    uses_labels = False

    def __init__(self, backbone: dict | nn.Module) -> None:
        super().__init__()
        self.backbone = backbone if isinstance(backbone, nn.Module) else BACKBONES.build(backbone)
        check_backbone_contract(self.backbone)

    def tensor(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the logits of the next tokens, ``(B, N, V)``."""
        return self.backbone.logits(self.backbone(inputs))

    def features(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the mean token of each window, ``(B, d)``."""
        return self.backbone(inputs).mean(1)

    def count(self, batch: dict[str, Tensor]) -> int:
        """Return the number of labels that count."""
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, inputs: Tensor, labels: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """Return the mean cross entropy in nats, ``{'loss': scalar}``; 0 if no label counts."""
        nats = self._nats(inputs, labels)
        return {"loss": nats.sum() / (labels != IGNORED).sum().clamp(min=1)}

    def predict(self, inputs: Tensor, labels: Tensor, sample_idx: Tensor | None = None, **_: Tensor) -> list[Any]:
        """Return ``[{'nats': (B,), 'labels': (B,), 'sample_idx': (B,)}]``: sums of nats and numbers of labels."""
        nats = self._nats(inputs, labels).double().sum(1)
        return [{"nats": nats, "labels": (labels != IGNORED).sum(1), "sample_idx": sample_idx}]

    def example(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        return {"inputs": torch.zeros(1, self.backbone.context_length, dtype=torch.int64, device=device)}

    def _nats(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of each label, ``(B, N)``; 0 where the label does not count."""
        return F.cross_entropy(self.tensor(inputs).mT, labels, ignore_index=IGNORED, reduction="none")
