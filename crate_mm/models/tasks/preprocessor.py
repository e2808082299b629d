"""Normalize uint8 images on the device. Shapes: B images, C channels, H x W pixels."""

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ...registry import MODELS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Move a batch to the model's device and turn its uint8 images into ``(x / 255 - mean) / std``.

    Images are transferred as uint8, a quarter of the bytes of float32, and normalized on the device.

    Args:
        mean: mean per channel, for images in 0..1.
        std: standard deviation per channel, for images in 0..1.

    ``inputs`` with several views are a list of tensors ``(B, C, H, W)``, and the output is a list too.

    A task sets ``channels_last`` if its backbone does. Images in channels-last memory order then keep this order; all
    other images are made contiguous. The values are the same.

    Raises:
        ValueError: (in forward) images are not uint8 or have another number of channels.
    """

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__(non_blocking=True)
        self.channels_last = False
        numbers = all(isinstance(number, (int, float)) and abs(number) < 1e30 for number in (*mean, *std))
        if not numbers or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean {mean} and std {std} need one number per channel, and std above 0")
        # In units of uint8: one subtraction and one product suffice. Not persistent: they are not weights.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        images = data["inputs"]
        views = isinstance(images, (list, tuple))
        return {**data, "inputs": [self.normalize(view) for view in images] if views else self.normalize(images)}

    def normalize(self, images: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` uint8 images as normalized floats of the same shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"expected uint8 images of shape (B, {len(self.mean)}, H, W), "
                f"got {str(images.dtype).removeprefix('torch.')} of {tuple(images.shape)}"
            )
        if not self.channels_last or not images.is_contiguous(memory_format=torch.channels_last):
            return (images.contiguous() - self.mean).mul_(self.scale)
        # Process image rows with all channels at once: looping over the few channels of each pixel is slow on CPUs.
        rows = images.permute(0, 2, 3, 1).flatten(2)
        mean, scale = (values.flatten().repeat(images.shape[3]) for values in (self.mean, self.scale))
        return (rows - mean).mul_(scale).unflatten(2, (-1, len(self.mean))).permute(0, 3, 1, 2)

    def denormalize(self, images: Tensor) -> Tensor:
        """Return normalized images ``(B, C, H, W)`` as uint8 for display, clamped to 0..255."""
        return (images / self.scale + self.mean).round().clamp(0, 255).to(torch.uint8)


def refuse_raw(images: Tensor) -> None:
    """Raise ``ValueError`` for uint8 images; the message says how to normalize them."""
    if images.dtype == torch.uint8:
        raise ValueError(
            f"expected normalized images, got uint8 of shape {tuple(images.shape)}: "
            'call model(**model.data_preprocessor({"inputs": images})), which normalizes them'
        )
