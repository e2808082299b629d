"""Causal language models. Shapes: B windows of a batch, N tokens of a window, V tokens of the vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.base import IGNORED_TOKEN, Field, dataset_of
from ...registry import BACKBONES, MODELS
from ..backbone import check_backbone_contract
from ..families.causal import CausalBackbone
from .base import Task


@MODELS.register_module()
class LanguageModel(Task):
    """A causal language model: a backbone, and the mean cross entropy of the next tokens.

    Args:
        backbone: config of ``BACKBONES`` or a ``CausalBackbone``.
        tokenizer: description of the tokenizer, needed for generation: 'bytes', or the dict from a token file's
            description. In a config, None is replaced by the description from the training data.

    Raises:
        ValueError: the backbone is not causal.

    Batches have ``inputs``, token IDs ``(B, N)``; ``labels``, the next tokens ``(B, N)``; and ``sample_idx`` ``(B,)``,
    each window's position in its dataset. Labels of -100 and further entries are ignored.
    """

    headline = ("eval/loss", "less")
    unit = "windows"
    uses_labels = False

    def __init__(self, backbone: dict | nn.Module, tokenizer: str | dict | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.backbone = backbone if isinstance(backbone, nn.Module) else BACKBONES.build(backbone)
        check_backbone_contract(self.backbone)
        if not isinstance(self.backbone, CausalBackbone):
            raise ValueError(
                f"a language model needs a causal backbone: let {type(self.backbone).__name__} inherit from "
                "crate_mm.models.families.causal.CausalBackbone, or choose another, such as CausalCRATE"
            )

    def tensor(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the logits of the next tokens, ``(B, N, V)``."""
        return self.backbone.logits(self.backbone(inputs))

    def features(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the mean token of each window, ``(B, d)``."""
        return self.backbone(inputs).mean(1)

    def count(self, batch: dict[str, Tensor]) -> int:
        """Return the number of labels that are not ignored."""
        return int((batch["labels"] != IGNORED_TOKEN).sum())

    def loss(self, inputs: Tensor, labels: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """Return the mean cross entropy in nats, ``{'loss': scalar}``; 0 if all labels are ignored."""
        nats = self._nats(inputs, labels)
        return {"loss": nats.sum() / (labels != IGNORED_TOKEN).sum().clamp(min=1)}

    def predict(self, inputs: Tensor, labels: Tensor, sample_idx: Tensor | None = None, **_: Tensor) -> list[Any]:
        """Return ``[{'nats': (B,), 'labels': (B,), 'sample_idx': (B,)}]``.

        'nats' is each window's total cross entropy, 'labels' its number of labels that are not ignored.
        """
        nats = self._nats(inputs, labels).double().sum(1)
        return [{"nats": nats, "labels": (labels != IGNORED_TOKEN).sum(1), "sample_idx": sample_idx}]

    def check_data(self, dataset: Any, split: str) -> None:
        data, name = dataset_of(dataset), f"{split}_dataloader.dataset of type {type(dataset).__name__!r}"
        inputs = (data.spec or {}).get("inputs")
        if not isinstance(inputs, Field) or inputs.dtype != torch.int64 or len(inputs.shape) != 1:
            raise ValueError(
                f"{name} gives {inputs} as inputs: expected token IDs, int64 of shape (N), as from Windows"
            )
        length, known = inputs.shape[0], self.backbone.context_length
        if isinstance(length, int) and length > known:
            raise ValueError(
                f"{name} gives windows of {length} tokens, but the backbone has {known} positions: set the dataset's "
                f"length to at most {known}, or a larger context_length of the backbone"
            )
        largest, vocab_size = data.largest_id(), self.backbone.vocab_size
        if largest is not None and largest >= vocab_size:
            raise ValueError(
                f"{name} has the token ID {largest}, but the backbone's vocabulary has {vocab_size} tokens: set "
                f"--cfg-options model.backbone.vocab_size={largest + 1}, or more"
            )
        tokenizer = data.metainfo.get("tokenizer")
        if None not in (tokenizer, self.tokenizer) and tokenizer != self.tokenizer:
            raise ValueError(
                f"{name} has tokens of the tokenizer {tokenizer}, but the model was trained on tokens of "
                f"{self.tokenizer}"
            )

    def example(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        return {"inputs": torch.zeros(1, self.backbone.context_length, dtype=torch.int64, device=device)}

    def _nats(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of each label, ``(B, N)``; 0 where the label is ignored."""
        logits = self.tensor(inputs).flatten(0, 1)
        nats = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_TOKEN, reduction="none")
        return nats.view(labels.shape)
