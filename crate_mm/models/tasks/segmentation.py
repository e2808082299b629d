"""Semantic segmentation: a backbone with a grid of patches, and a decoder that classifies each patch.

Source of the task: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, arXiv 2105.05633.
Shapes: B images, C channels, H x W pixels, h x w patches (N in total), d embedding dimensions, K classes.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.base import IGNORED_PIXEL, Field, dataset_of, require_images
from ...registry import HEADS, MODELS
from ..backbone import image_spec, patch_grid_of
from ..layers import to_pair
from ..layers.tokens import Size
from .base import ImageTask, check_classes, check_images_fit


@MODELS.register_module()
class Segmentation(ImageTask):
    """A class for each pixel: a decoder computes patch logits, and bilinear interpolation enlarges them to pixels.

    The loss is the mean cross entropy of the labeled pixels; the label 255 is ignored. If the backbone can interpolate
    its positions, images may have any size: they are padded with 0, the mean color, at the bottom and at the right to
    whole patches. The padding is cropped from the logits.

    Args:
        backbone: config of ``BACKBONES``, or a ``Backbone`` of images whose ``layout`` is a grid.
        head: config of ``HEADS`` for a decoder (its ``embed_dim`` comes from the backbone), or a decoder:
            ``decoder(patches (B, N, d), (h, w))`` returns logits ``(B, K, h, w)``, and ``decoder.num_classes`` is K.
        window: height and width of the sliding window of ``predict``; None for the whole image at once.
        stride: step between windows, at most ``window`` (default: ``window``).
        preprocessor: config of ``MODELS``, or a module.
        freeze_backbone: train only the decoder, as for ``ImageClassifier``.

    Batches have ``inputs``, images ``(B, C, H, W)``; ``labels``, masks ``(B, H, W)`` of classes or 255; and
    ``sample_idx`` ``(B,)``.

    Raises:
        ValueError: the backbone has no grid of patches, the head is not a decoder, or ``stride`` leaves gaps.
    """

    headline = ("eval/miou", "greater")
    labels_pixels = True

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        window: Size | None = None,
        stride: Size | None = None,
        preprocessor: dict | nn.Module | None = None,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__(backbone, preprocessor, freeze_backbone)
        (H, W), (rows, columns) = image_spec(self.backbone).size, patch_grid_of(self.backbone)
        self.patch_size = H // rows, W // columns
        self.backbone.interpolate_positions()
        self.head = head if isinstance(head, nn.Module) else _build_decoder(head, self.backbone.embed_dim)
        self.window = None if window is None else to_pair(window)
        self.stride = self.window if stride is None else to_pair(stride)
        if (self.window is None) != (self.stride is None):
            raise ValueError("stride needs a window")
        if self.window and not all(1 <= step <= side for step, side in zip(self.stride, self.window)):
            raise ValueError(f"stride {self.stride} must be at least 1 and at most the window, {self.window}")

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    def tensor(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the logits of the pixels, ``(B, K, H, W)``, of the whole image at once."""
        (H, W), (h, w) = inputs.shape[-2:], self.patch_size
        patches, (rows, columns) = self._patches(inputs)
        return _enlarge(self.head(patches, (rows, columns)), (rows * h, columns * w))[..., :H, :W]

    def logits(self, inputs: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the logits of the pixels, computed in a sliding window and averaged where windows overlap.

        The last window of a row or column ends at the image's edge. An image no larger than the window is one window.

        Args:
            inputs: normalized images ``(B, C, H, W)``.
            size: height and width of the result; the logits are resized to it (default: H x W).
        """
        H, W = inputs.shape[-2:]
        h, w = (H, W) if self.window is None else (min(self.window[0], H), min(self.window[1], W))
        if (h, w) == (H, W):
            total = self.tensor(inputs)
        else:
            total, count = inputs.new_zeros(len(inputs), self.num_classes, H, W), inputs.new_zeros(H, W)
            for top in _starts(H, h, self.stride[0]):
                for left in _starts(W, w, self.stride[1]):
                    total[..., top : top + h, left : left + w] += self.tensor(
                        inputs[..., top : top + h, left : left + w]
                    )
                    count[top : top + h, left : left + w] += 1
            total = total / count
        return _enlarge(total, size or (H, W))

    def features(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the mean of the patches' tokens, ``(B, d)``."""
        return self._patches(inputs)[0].mean(1)

    def _patches(self, inputs: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens of the patches of padded images, ``(B, N, d)``, and their grid (rows, columns)."""
        bottom, right = (-side % patch for side, patch in zip(inputs.shape[-2:], self.patch_size))
        padded = F.pad(inputs, (0, right, 0, bottom)) if bottom or right else inputs
        _, rows, columns = self.backbone.layout(padded)
        # The patches are the last tokens. ``prefix`` of the layout holds only inside the layers: after them, a backbone
        # may add a CLS token or remove registers.
        return self._tokens(padded)[:, -rows * columns :], (rows, columns)

    def count(self, batch: dict[str, Tensor]) -> int:
        """Return the number of labeled pixels."""
        return int((batch["labels"] != IGNORED_PIXEL).sum())

    def loss(self, inputs: Tensor, labels: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """Return the mean cross entropy of the labeled pixels, ``{'loss': scalar}``; 0 if no pixel is labeled."""
        labels = labels.long()
        total = F.cross_entropy(self.tensor(inputs), labels, ignore_index=IGNORED_PIXEL, reduction="sum")
        return {"loss": total / (labels != IGNORED_PIXEL).sum().clamp(min=1)}

    def predict(self, inputs: Tensor, labels: Tensor | None = None, sample_idx: Tensor | None = None, **_: Tensor):
        """Return ``[{'predicted': (B, H, W), 'labels', 'num_classes', 'sample_idx'}]``, one dict for the batch.

        The predicted classes, uint8, have the size of the masks, or of the images if there are no masks.
        """
        size = None if labels is None else tuple(labels.shape[-2:])
        predicted = self.logits(inputs, size).argmax(1).to(torch.uint8)
        return [{"predicted": predicted, "labels": labels, "num_classes": self.num_classes, "sample_idx": sample_idx}]

    def check_data(self, dataset: Any, split: str) -> None:
        require_images(dataset, split)
        labels = dataset_of(dataset).spec.get("labels")
        if not isinstance(labels, Field) or len(labels.shape) != 2:
            raise ValueError(
                f"{split}_dataloader.dataset of type {type(dataset).__name__!r} gives no masks: expected labels "
                "(H, W), as from a SegmentationDataset"
            )
        if self.num_classes > IGNORED_PIXEL:
            raise ValueError(
                f"the head has {self.num_classes} classes: expected at most {IGNORED_PIXEL}, because the label "
                f"{IGNORED_PIXEL} is ignored"
            )
        check_classes(dataset, self.num_classes, split)
        dataset_of(dataset).check()
        check_images_fit(dataset, self.backbone, split)


def _build_decoder(config: dict, embed_dim: int) -> nn.Module:
    """Build a decoder from its config; raise ``ValueError`` for a head that is not a decoder."""
    kind = HEADS.get(config["type"])
    if "embed_dim" not in inspect.signature(kind).parameters:
        raise ValueError(f"the head {config['type']} is not a mask decoder: use LinearDecoder, for example")
    return HEADS.build({**config, "embed_dim": embed_dim})


def _enlarge(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(B, K, h, w)`` bilinearly to a size (height, width)."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, tuple(size), mode="bilinear", align_corners=False)


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Return the windows' first positions along a side, in pixels; the last window ends at the edge."""
    return [*range(0, side - window, stride), side - window]
