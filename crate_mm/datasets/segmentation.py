"""Dataset of images with masks: both pass through the same transforms. Shapes: H x W pixels of an image."""

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..registry import DATASETS, TRANSFORMS
from .base import IGNORED_PIXEL, Field
from .classification import ClassificationDataset
from .decode import DecodesBytes
from .masks import MaskSource
from .transforms import RandomCrop, to_uint8

TRIES = 10  # crops drawn by RandomClassCrop


@DATASETS.register_module()
class SegmentationDataset(ClassificationDataset):
    """Samples of a ``ClassificationDataset`` whose ``labels`` are a mask: uint8 ``(H, W)``, 255 for ignored pixels.

    A transform draws one set of parameters for image and mask. Masks are resized by nearest-neighbor interpolation.
    Pixels that a transform adds get ``fill`` in the image and 255 in the mask. A mask that cannot be read, has another
    size than its image, or has a label outside the classes counts as an unreadable image.

    Args:
        source: config of ``DATASETS`` for a ``MaskSource``, or the source.
        transforms, max_unreadable: as for ``ClassificationDataset``.
        transform_masks: whether to transform the masks. If False, masks keep their size, for an evaluation at the
            resolution of the original images; the transforms must then keep the whole image (``keeps_whole_image``).

    Raises:
        ValueError: the source has no masks or more than 255 classes, or a transform does not support masks.
    """

    def __init__(
        self,
        source: dict | Dataset,
        transforms: list[dict] = (),
        max_unreadable: int = 100,
        transform_masks: bool = True,
    ) -> None:
        super().__init__(source, [_ignore_padding(cfg) for cfg in transforms], max_unreadable)
        if not isinstance(self.images, MaskSource):
            raise ValueError(
                f"SegmentationDataset: the images of {self.images.name} have no masks: use a source of images with "
                "masks, such as MaskFolders"
            )
        if not 1 <= len(self.images.classes) < IGNORED_PIXEL + 1:
            raise ValueError(
                f"SegmentationDataset: {len(self.images.classes)} classes: expected 1 to {IGNORED_PIXEL}, as the label "
                f"{IGNORED_PIXEL} is ignored"
            )
        if not transform_masks and not keeps_whole_image(transforms):
            raise ValueError(
                "SegmentationDataset: with transform_masks=False only transforms that keep the whole image are "
                f"possible ({', '.join(WHOLE_IMAGE)})"
            )
        self.transform_masks = transform_masks

    @property
    def spec(self) -> dict[str, Field | list[Field]]:
        return {**super().spec, "labels": Field(torch.uint8, ("H", "W"))}

    def check(self) -> None:
        """Raise ``UnreadableImageError`` (a ``ValueError``) if the first image or its mask cannot be used."""
        self.images[0]

    def _transform(self, images: list[Image.Image], label: np.ndarray) -> tuple[list[Tensor], Tensor]:
        (image,), (transform,), mask = images, self._views, tv_tensors.Mask(torch.from_numpy(label))
        if self.transform_masks:
            image, mask = transform(image, mask)
        else:
            image = transform(image)
        image, mask = to_uint8(image), mask.as_subclass(Tensor)
        if self.transform_masks and image.shape[-2:] != mask.shape:
            sizes = " and ".join(" x ".join(map(str, tensor.shape[-2:])) for tensor in (image, mask))
            raise TypeError(f"the transforms give an image and a mask of different sizes, {sizes}: resize both alike")
        return [image], mask


WHOLE_IMAGE = ("Resize", "Grayscale", "RGB")  # transforms that keep every part of an image in its relative place


def keeps_whole_image(transforms: list[dict]) -> bool:
    """Return whether transforms keep every part of an image in its relative place, so that its mask still fits."""
    return all(cfg.get("type") in WHOLE_IMAGE for cfg in transforms)


def _ignore_padding(cfg: Any) -> Any:
    """Return a transform's config in which ``fill``, if supported, is for images only: masks get ``IGNORED_PIXEL``.

    Raises:
        ValueError: the transform decodes images and does not support masks.
    """
    if not isinstance(cfg, dict):
        return cfg
    cfg, kind = dict(cfg), TRANSFORMS.get(cfg["type"])
    if issubclass(kind, DecodesBytes):
        raise ValueError(f"SegmentationDataset: {cfg['type']} takes no mask: use Resize or RandomResizedCrop")
    if "transforms" in cfg:
        cfg["transforms"] = [_ignore_padding(inner) for inner in cfg["transforms"]]
    if "fill" in inspect.signature(kind).parameters:
        cfg["fill"] = {tv_tensors.Mask: IGNORED_PIXEL, "others": cfg.get("fill", 0)}
    return cfg


@TRANSFORMS.register_module()
class RandomClassCrop(RandomCrop):
    """``RandomCrop`` that is drawn up to ``TRIES`` times, until no class covers too much of the crop.

    As in the recipes of mmsegmentation (``cat_max_ratio``), a crop is accepted if it has at least two classes and no
    class covers more than ``max_share`` of the crop's labeled pixels.

    Args:
        max_share: fraction of the labeled pixels, above 0 and at most 1.
        args, kwargs: as for ``RandomCrop``.

    Raises:
        ValueError: (when built) invalid ``max_share``; (when called) there is no mask.
    """

    def __init__(self, *args: Any, max_share: float = 0.75, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(max_share, (int, float)) or not 0 < max_share <= 1:
            raise ValueError(f"RandomClassCrop: max_share must be above 0 and at most 1, got {max_share!r}")
        self.max_share = max_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next((value for value in flat_inputs if isinstance(value, tv_tensors.Mask)), None)
        if mask is None:
            raise ValueError("RandomClassCrop needs a mask: use RandomCrop for images alone")
        for _ in range(TRIES):
            params = super().make_params(flat_inputs)
            counts = torch.bincount(
                v2.RandomCrop.transform(self, mask, params).flatten().int(), minlength=IGNORED_PIXEL + 1
            )
            counts = counts[:IGNORED_PIXEL]
            if (counts > 0).sum() > 1 and counts.max() <= self.max_share * counts.sum():
                break
        return params
