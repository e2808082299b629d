"""The one model that the Runner sees. Shapes: B images, C channels, H x W pixels."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..registry import BACKBONES, HEADS, MODELS


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A backbone and a head, with a preprocessor that runs on the device.

    Args:
        backbone: config of ``BACKBONES`` or a module with ``embed_dim`` that maps images to tokens ``(B, 1 + N, d)``.
        head: config of ``HEADS`` (its ``in_dim`` comes from the backbone) or a module that maps tokens to logits.
        preprocessor: config of ``MODELS``, or a module.
        label_smoothing: of the training loss.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        preprocessor: dict | nn.Module | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if not isinstance(preprocessor, nn.Module):
            preprocessor = MODELS.build({"type": "ImagePreprocessor", **(preprocessor or {})})
        super().__init__(data_preprocessor=preprocessor)
        self.backbone = backbone if isinstance(backbone, nn.Module) else BACKBONES.build(backbone)
        self.head = head if isinstance(head, nn.Module) else HEADS.build({**head, "in_dim": self.backbone.embed_dim})
        self.label_smoothing = label_smoothing

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def in_channels(self) -> int:
        """Channels C of the images, which are those that the preprocessor normalises."""
        return len(self.data_preprocessor.mean)

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        sample_idx: Tensor | None = None,
        mode: str = "tensor",
        **meta: Tensor,
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run on images that the preprocessor has normalised.

        Args:
            inputs: images ``(B, C, H, W)``, float.
            labels: class indices ``(B,)``, for the modes 'loss' and 'predict'.
            sample_idx: position of each image in its dataset ``(B,)``, for the mode 'predict'.
            mode: 'tensor' returns logits ``(B, num_classes)``; 'loss' returns ``{'loss': scalar}``; 'predict' returns
                one dict for the batch, in a list as MMEngine's evaluator wants it.
            meta: further entries of the batch, of no use here.
        """
        logits = self.head(self.backbone(inputs))
        if mode == "tensor":
            return logits
        if mode == "loss":
            return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}
        if mode == "predict":
            return [{"logits": logits, "labels": labels, "sample_idx": sample_idx}]
        raise ValueError(f"unknown mode {mode!r}: choose tensor, loss, predict")
