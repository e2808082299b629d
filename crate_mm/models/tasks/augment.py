"""What is done to a training batch on the device, once it is normalised: erasing and mixing.

The draws come from PyTorch's generators, noise from the device's, all else from the host's, for which no GPU is waited
for. A run seeds them at each iteration.
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
    """torchvision's mixup (Zhang et al., ICLR 2018): every image is mixed with the one before it, the first with the
    last, by one weight from Beta(alpha, alpha) for the batch.

    Args:
        alpha: of the Beta distribution; recipes take 0.8.
        prob: see ``BatchAugments``.

    Raises:
        ValueError: alpha is not above 0.
    """

    mixes = True

    def __init__(self, alpha: float = 0.8, prob: float | None = None) -> None:
        _build_on_cpu(super().__init__, alpha)
        self.prob = prob


@MODELS.register_module()
class CutMix(v2.CutMix):
    """torchvision's cutmix (Yun et al., ICCV 2019): one rectangle of every image is taken from the one before it, the
    first's from the last; its share of the area is 1 - lambda of Beta(alpha, alpha), and the labels have the share that
    is left of it inside the image.

    Args:
        alpha: of the Beta distribution; recipes take 1.
        prob: see ``BatchAugments``.

    Raises:
        ValueError: alpha is not above 0.
    """

    mixes = True

    def __init__(self, alpha: float = 1.0, prob: float | None = None) -> None:
        _build_on_cpu(super().__init__, alpha)
        self.prob = prob


def _build_on_cpu(init, alpha: float) -> None:
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise ValueError(f"alpha must be a number above 0, got {alpha!r}: leave the entry out to mix nothing")
    with torch.device("cpu"):  # a model may be built without memory, and this is looked at as it is built
        init(alpha=alpha)


@MODELS.register_module()
class BatchRandomErasing(nn.Module):
    """Random erasing (Zhong et al., AAAI 2020) by torchvision, of normalised images, a rectangle of its own in each.

    As timm does it in mode 'pixel', which the recipes of DeiT, XCiT and ToST use: after the normalisation, with normal
    noise a pixel. In a dataset's transforms, where images are uint8, this cannot be had.

    Args:
        p: probability that an image has a rectangle erased.
        scale: range of the rectangle's share of the area.
        ratio: range of its height / width, drawn uniformly in the logarithm.
        value: 'random' for normal noise, a number for one value; 0 is the mean colour.

    Raises:
        ValueError: p is no probability, or torchvision takes no such ranges or value.
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
        with torch.device("cpu"):  # torchvision draws the rectangles; its noise would be drawn on the host
            self.erasing = v2.RandomErasing(p, tuple(scale), tuple(ratio), 0 if value == "random" else value)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.clone(memory_format=torch.contiguous_format)  # noise is drawn in the order of memory
        for image, draw in zip(images, torch.rand(len(images)).tolist()):
            if draw >= self.p:
                continue
            at = self.erasing.make_params([image])
            region = image[:, at["i"] : at["i"] + at["h"], at["j"] : at["j"] + at["w"]]
            if at["v"] is not None and self.value == "random":  # None where no rectangle that was drawn fits
                region.normal_()
            elif at["v"] is not None:
                region.copy_(at["v"])
        return images, labels


class BatchAugments(nn.Module):
    """Augmentations of a batch: ``(B, C, H, W)`` images and labels ``(B,)`` to images and labels, ``(B,)`` or
    probabilities ``(B, num_classes)``.

    Those that mix are alternatives: at most one is drawn for a batch. The others are all applied, before it, in their
    order, as the recipes erase before they mix.

    Args:
        configs: of ``MODELS``, for modules ``(images, labels) -> (images, labels)``; one that mixes has a true
            attribute ``mixes``, gets labels as probabilities, and may have ``prob``, the probability that it is drawn.
            Those whose ``prob`` is None have equal shares of what the others leave.
        num_classes: number of classes.

    Raises:
        ValueError: probabilities that are none or are more than 1 together, an entry that mixes before one that does
            not, or (in forward) a batch of one image, which has none to be mixed with.
    """

    def __init__(self, configs: list[dict], num_classes: int) -> None:
        super().__init__()
        if isinstance(configs, dict) or not all(isinstance(config, dict) and "type" in config for config in configs):
            raise ValueError(f"batch_augments must be a list of dict(type=...), got {configs!r}")
        self.num_classes = num_classes
        self.always, self.mixing = nn.ModuleList(), nn.ModuleList()
        given: list[float | None] = []
        for config in configs:
            kind = MODELS.get(config["type"])
            if "prob" in config and "prob" not in inspect.signature(kind).parameters:
                raise ValueError(f"batch_augments: {config['type']} is always applied, it has no prob")
            module = MODELS.build(config)
            if getattr(module, "mixes", False):
                self.mixing.append(module)
                given.append(getattr(module, "prob", None))
            elif len(self.mixing):
                first = type(self.mixing[0]).__name__
                raise ValueError(f"batch_augments: {config['type']} must stand before {first}, which mixes images")
            else:
                self.always.append(module)
        self.shares = _shares(given)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for augment in self.always:
            images, labels = augment(images, labels)
        if not self.mixing:
            return images, labels
        if len(images) < 2:
            raise ValueError(
                "batch_augments mixes each image with another of its micro-batch, which holds one image: set a larger "
                "global_batch_size or max_batch_per_device"
            )
        labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        draw = torch.rand(()).item()
        for augment, share in zip(self.mixing, self.shares):
            if draw < share:
                return augment(images, labels)
            draw -= share
        return images, labels


def _shares(given: list[float | None]) -> list[float]:
    """Probabilities, of which those that are None have equal shares of what is left."""
    for prob in given:
        if prob is not None and (not isinstance(prob, (int, float)) or isinstance(prob, bool) or not 0 <= prob <= 1):
            raise ValueError(f"batch_augments: prob must be a probability from 0 to 1, got {prob!r}")
    left = 1 - sum(prob for prob in given if prob is not None)
    if left < -1e-9:
        raise ValueError(f"batch_augments: the probs of {given} are more than 1 together; one is drawn for a batch")
    shared = max(left, 0) / max(given.count(None), 1)
    return [shared if prob is None else prob for prob in given]
