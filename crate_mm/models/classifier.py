"""The one model that the Runner sees. Shapes: B images, C channels, H x W pixels."""

import torch
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
        freeze_backbone: train the head alone (a linear probe): the backbone stays in eval mode, takes no gradient,
            and no graph is built for it.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        preprocessor: dict | nn.Module | None = None,
        label_smoothing: float = 0.0,
        freeze_backbone: bool = False,
    ) -> None:
        if not isinstance(preprocessor, nn.Module):
            preprocessor = MODELS.build({"type": "ImagePreprocessor", **(preprocessor or {})})
        super().__init__(data_preprocessor=preprocessor)
        self.backbone = backbone if isinstance(backbone, nn.Module) else BACKBONES.build(backbone)
        self.head = head if isinstance(head, nn.Module) else HEADS.build({**head, "in_dim": self.backbone.embed_dim})
        channels = getattr(self.backbone, "in_channels", None)
        if channels is not None and hasattr(preprocessor, "mean") and len(preprocessor.mean) != channels:
            raise ValueError(
                f"the backbone takes images of {channels} channels, the preprocessor's mean and std are of "
                f"{len(preprocessor.mean)}: set in_channels or mean and std"
            )
        self.label_smoothing = label_smoothing
        self.flip_test = False  # in the mode 'predict', average the probabilities of an image and its mirror image
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ImageClassifier":
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

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
            mode: 'tensor' returns logits ``(B, num_classes)``; 'features' the tokens that the head pools ``(B, d)``;
                'loss' ``{'loss': scalar}``; 'predict' one dict for the batch, in a list as MMEngine's evaluator wants
                it.
            meta: further entries of the batch, of no use here.
        """
        if mode == "tensor":
            return self.head(self._tokens(inputs))
        if mode == "features":
            return self.head.pooled(self._tokens(inputs))
        if mode == "loss":
            logits = self.head(self._tokens(inputs))
            return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}
        if mode == "predict":
            logits = self.head(self._tokens(inputs))
            if self.flip_test:
                mirrored = self.head(self._tokens(inputs.flip(-1)))
                logits = torch.stack([logits, mirrored]).log_softmax(-1).logsumexp(0)
            return [{"logits": logits, "labels": labels, "sample_idx": sample_idx}]
        raise ValueError(f"unknown mode {mode!r}: choose tensor, features, loss, predict")

    def _tokens(self, inputs: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return self.backbone(inputs)
