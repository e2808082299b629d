"""Image classification. Shapes: B images, C channels, H x W pixels, d embedding dimensions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.base import require_images
from ...registry import HEADS, MODELS
from .augment import BatchAugments
from .base import ImageTask, check_classes, check_images_fit


@MODELS.register_module()
class ImageClassifier(ImageTask):
    """Image classifier: a preprocessor, a backbone and a head.

    Args:
        backbone: config of ``BACKBONES`` or a ``Backbone`` of images.
        head: config of ``HEADS`` (its ``in_dim`` comes from the backbone) or a module that maps tokens to logits.
        preprocessor: config of ``MODELS``, or a module.
        label_smoothing: label smoothing of the training loss, applied to mixed labels too.
        batch_augments: configs of ``MODELS`` for augmentations of a training batch on the device, such as ``MixUp``,
            ``CutMix`` and ``BatchRandomErasing``, see ``BatchAugments``. Images are mixed within a micro-batch.
        freeze_backbone: train only the head (a linear probe). The backbone stays in eval mode, without gradients and
            without a graph.

    Batches have ``inputs``, images ``(B, C, H, W)``; ``labels``, class indices ``(B,)``; and ``sample_idx`` ``(B,)``,
    each image's position in its dataset. Further entries have no effect.
    """

    headline = ("eval/top1", "greater")

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        preprocessor: dict | nn.Module | None = None,
        label_smoothing: float = 0.0,
        freeze_backbone: bool = False,
        batch_augments: list[dict] = (),
    ) -> None:
        super().__init__(backbone, preprocessor, freeze_backbone)
        self.head = head if isinstance(head, nn.Module) else HEADS.build({**head, "in_dim": self.backbone.embed_dim})
        self.label_smoothing = label_smoothing
        self.batch_augments = BatchAugments(batch_augments, self.num_classes) if batch_augments else None
        self.flip_test = False  # in predict, average the probabilities of an image and its mirror image

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    def tensor(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of normalized images, or features ``(B, d)`` if num_classes is 0."""
        return self.head(self._tokens(inputs))

    def features(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the pooled tokens of the head, ``(B, d)``."""
        return self.head.pooled(self._tokens(inputs))

    @property
    def mixes_samples(self) -> bool:
        return self.batch_augments is not None and len(self.batch_augments.mixing) > 0

    def loss(self, inputs: Tensor, labels: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """Return the cross entropy, ``{'loss': scalar}``; in training, after ``batch_augments``."""
        self._require_classes()
        if self.training and self.batch_augments is not None:
            inputs, labels = self.batch_augments(inputs, labels)
        return {"loss": F.cross_entropy(self.tensor(inputs), labels, label_smoothing=self.label_smoothing)}

    def predict(self, inputs: Tensor, labels: Tensor | None = None, sample_idx: Tensor | None = None, **_: Tensor):
        """Return ``[{'logits': (B, num_classes), 'labels': (B,), 'sample_idx': (B,)}]``, one dict for the batch."""
        self._require_classes()
        logits = self.tensor(inputs)
        if self.flip_test:
            logits = torch.stack([logits, self.tensor(inputs.flip(-1))]).log_softmax(-1).logsumexp(0)
        return [{"logits": logits, "labels": labels, "sample_idx": sample_idx}]

    def check_data(self, dataset: Any, split: str) -> None:
        require_images(dataset, split)
        check_classes(dataset, self.num_classes, split)
        check_images_fit(dataset, self.backbone, split)

    def _require_classes(self) -> None:
        if self.num_classes == 0:
            raise ValueError(
                "the head has num_classes=0, so the model returns features: set model.head.num_classes=N to train or "
                "predict"
            )
