"""Augmentations of a normalized training batch on the device: erasing and mixing.

PyTorch's generator of the device draws noise. The generator of the host draws everything else, without waiting for the
GPU. A run seeds both generators at each iteration.
Shapes: B images of a micro-batch, C channels, H x W pixels.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from ...registry import MODELS


@MODELS.register_module()
class MixUp(v2.MixUp):
    """torchvision's mixup (Zhang et al., ICLR 2018).

    Each image is mixed with the previous one, and the first with the last, with one weight from Beta(alpha, alpha) for
    the batch.

    Args:
        alpha: parameter of the Beta distribution; 0.8 is common.
        prob: see ``BatchAugments``.

    Raises:
        ValueError: alpha is not positive.
    """

    mixes = True

    def __init__(self, alpha: float = 0.8, prob: float | None = None) -> None:
        _build_on_cpu(super().__init__, alpha)
        self.prob = prob


@MODELS.register_module()
class CutMix(v2.CutMix):
    """torchvision's cutmix (Yun et al., ICCV 2019).

    A rectangle of each image is replaced by the same rectangle of the previous image; the last image counts as the
    first's previous one. The area is a fraction 1 - lambda of the image, with lambda from Beta(alpha, alpha). Labels
    are weighted by the rectangle's area inside the image.

    Args:
        alpha: parameter of the Beta distribution; 1 is common.
        prob: see ``BatchAugments``.

    Raises:
        ValueError: alpha is not positive.
    """

    mixes = True

    def __init__(self, alpha: float = 1.0, prob: float | None = None) -> None:
        _build_on_cpu(super().__init__, alpha)
        self.prob = prob


def _build_on_cpu(init, alpha: float) -> None:
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise ValueError(f"alpha must be a number above 0, got {alpha!r}: leave the entry out to mix nothing")
    with torch.device("cpu"):  # the constructor reads values, which fails on the meta device
        init(alpha=alpha)


@MODELS.register_module()
class BatchRandomErasing(nn.Module):
    """Random erasing (Zhong et al., AAAI 2020) of normalized images by torchvision, one rectangle per image.

    As timm's mode 'pixel' in the recipes of DeiT, XCiT and ToST: after normalization, with normal noise per pixel. The
    transforms of a dataset cannot do this, because their images are uint8.

    Args:
        p: probability of erasing a rectangle of an image.
        scale: range of the fraction of the image's area.
        ratio: range of height / width, sampled log-uniformly.
        value: 'random' for normal noise, or a number; 0 is the mean color.

    Raises:
        ValueError: p is not a probability, or torchvision rejects the ranges or the value.
    """

    def __init__(
        self,
        p: float = 0.25,
        scale: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        value: float | str = "random",
    ) -> None:
        super().__init__()
        self.p, self.value = p, value
        with torch.device("cpu"):  # only draws rectangles: torchvision would draw noise on the host
            self.erasing = v2.RandomErasing(p, tuple(scale), tuple(ratio), 0 if value == "random" else value)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.clone(memory_format=torch.contiguous_format)  # noise is drawn in memory order
        for image, draw in zip(images, torch.rand(len(images)).tolist()):
            if draw >= self.p:
                continue
            box = self.erasing.make_params([image])
            region = image[:, box["i"] : box["i"] + box["h"], box["j"] : box["j"] + box["w"]]
            if box["v"] is not None and self.value == "random":  # None if no sampled rectangle fits
                region.normal_()
            elif box["v"] is not None:
                region.copy_(box["v"])
        return images, labels


class BatchAugments(nn.Module):
    """Augmentations of a batch of images ``(B, C, H, W)`` and labels ``(B,)``.

    At most one of the mixing augmentations is drawn for each batch. All other augmentations are applied first, in the
    given order, because the recipes erase before they mix. Mixed labels are probabilities ``(B, num_classes)``.

    Args:
        configs: configs of ``MODELS`` for modules ``(images, labels) -> (images, labels)``. A mixing module has a true
            attribute ``mixes``, receives labels as probabilities, and may have ``prob``, the probability that it is
            drawn. Modules whose ``prob`` is None divide the remaining probability equally.
        num_classes: number of classes.

    Raises:
        ValueError: invalid probabilities or a sum above 1, a mixing module before one that does not mix, or (in
            forward) a batch of one image.
    """

    def __init__(self, configs: list[dict], num_classes: int) -> None:
        super().__init__()
        if isinstance(configs, dict) or not all(isinstance(config, dict) and "type" in config for config in configs):
            raise ValueError(f"batch_augments must be a list of dict(type=...), got {configs!r}")
        self.num_classes = num_classes
        self.always, self.mixing = nn.ModuleList(), nn.ModuleList()
        probabilities: list[float | None] = []
        for config in configs:
            kind = MODELS.get(config["type"])
            if "prob" in config and "prob" not in inspect.signature(kind).parameters:
                raise ValueError(f"batch_augments: {config['type']} is always applied, it has no prob")
            module = MODELS.build(config)
            if getattr(module, "mixes", False):
                self.mixing.append(module)
                probabilities.append(getattr(module, "prob", None))
            elif len(self.mixing):
                first = type(self.mixing[0]).__name__
                raise ValueError(f"batch_augments: {config['type']} must come before {first}, which mixes images")
            else:
                self.always.append(module)
        self.probabilities = _fill_probabilities(probabilities)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for augment in self.always:
            images, labels = augment(images, labels)
        if not self.mixing:
            return images, labels
        if len(images) < 2:
            raise ValueError(
                "batch_augments mixes each image with another of its micro-batch, which has only one image: set a "
                "larger global_batch_size or max_batch_per_device"
            )
        labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        draw = torch.rand(()).item()
        for augment, probability in zip(self.mixing, self.probabilities):
            if draw < probability:
                return augment(images, labels)
            draw -= probability
        return images, labels


def _fill_probabilities(probabilities: list[float | None]) -> list[float]:
    """Return the probabilities; those that are None divide the remaining probability equally."""
    for prob in probabilities:
        if prob is not None and (not isinstance(prob, (int, float)) or isinstance(prob, bool) or not 0 <= prob <= 1):
            raise ValueError(f"batch_augments: prob must be a probability from 0 to 1, got {prob!r}")
    remaining = 1 - sum(prob for prob in probabilities if prob is not None)
    if remaining < -1e-9:
        raise ValueError(f"batch_augments: the sum of prob must be at most 1, got {probabilities}")
    equal = max(remaining, 0) / max(probabilities.count(None), 1)
    return [equal if prob is None else prob for prob in probabilities]
