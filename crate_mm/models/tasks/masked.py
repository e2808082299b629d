"""Masked autoencoding: most patches of an image are masked, and the model reconstructs them.

Source: Pai et al., "Masked Completion via Structured Diffusion with White-Box Transformers", ICLR 2024, arXiv
2404.02446, and the official code, which follows He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR
2022.
Shapes: B images, C channels, H x W pixels, N patches of h x w pixels, d embedding dimensions.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ...datasets.base import require_images
from ...registry import MODELS
from ..backbone import image_spec, patch_grid_of, require_masking
from ..families import CRATEMAE, MAEDecoder
from .base import ImageTask, check_images_fit

EPS = 1e-6  # added to the variance of a patch


class Reconstruction(NamedTuple):
    """Reconstruction of masked images.

    Attributes:
        masked: normalized images ``(B, C, H, W)`` with masked patches set to zero.
        filled: the images with predictions in place of the masked patches.
        mask: ``(B, N)``, true for masked patches.
    """

    masked: Tensor
    filled: Tensor
    mask: Tensor


def random_bits(seeds: Tensor, count: int) -> Tensor:
    """Return random int64 numbers ``(B, count)``, one row for each seed ``(B,)``, on the seeds' device.

    The numbers equal those of ``crate_mm.datasets.draws.random_bits`` (SplitMix64 keyed by the seed); int64 wraps like
    uint64. Computing them on the device avoids waiting for the host.
    """
    bits = seeds[:, None] + torch.arange(count, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits = (bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)  # int64 shifts keep the sign
    return bits


def random_masks(seeds: Tensor, views: int, patches: int, probability: float, ratio: tuple[float, float]) -> Tensor:
    """Return random patch masks ``(B, views, patches)``, true for masked; they depend only on the seeds ``(B,)``.

    Args:
        seeds: int64.
        views: number of views of a sample, each with its own mask.
        patches: number of patches of a view.
        probability: probability that a view is masked.
        ratio: smallest and largest fraction of masked patches, drawn uniformly; at least one patch is masked.
    """
    bits = random_bits(seeds, views * (patches + 2)).view(-1, views, patches + 2)
    numbers = ((bits >> 11) & (2**53 - 1)).double() / 2**53  # uniform in [0, 1)
    count = ((ratio[0] + (ratio[1] - ratio[0]) * numbers[..., 1]) * patches).round().clamp(min=1)
    count = count * (numbers[..., 0] < probability)
    return numbers[..., 2:].argsort(-1).argsort(-1) < count[..., None]


def _signed(number: int) -> int:
    """Return the int64 with the bits of a uint64."""
    return (number ^ 2**63) - 2**63


@MODELS.register_module()
class MaskedAutoencoder(ImageTask):
    """A masked autoencoder: an encoder with a mask token for each masked patch, and a decoder that predicts pixels.

    The loss is the mean squared error of the masked patches against their normalized pixels. The official model's
    unused ``decoder_embed`` is omitted: of the official 44,335,872 parameters (Base), this model has the 43,745,280
    that the official forward pass uses.

    Args:
        backbone: config of ``BACKBONES``, or a module, called with ``(images, mask, mask_token)`` as ``PatchBackbone``.
        decoder: ``depth`` and ``num_heads`` of the decoder (default: the encoder's).
        mask_ratio: fraction of masked patches; ``int(N (1 - mask_ratio))`` patches stay visible.
        norm_pix_loss: predict standardized pixels of a patch: ``(x - mean) / sqrt(var + 1e-6)`` over its ``h w C``
            elements, with the unbiased variance.
        preprocessor: config of ``MODELS``, or a module.

    Batches have ``inputs``, images ``(B, C, H, W)`` of the backbone's ``img_size``; ``sample_idx`` ``(B,)``, each
    image's position in its dataset; and ``sample_seed``, int64 ``(B,)``. A mask depends only on ``sample_seed`` in
    training and on ``sample_idx`` in evaluation, not on the number of processes. ``noise`` ``(B, N)`` overrides both:
    the patches with the smallest values stay visible (see ``mask_of``). Further entries have no effect.

    Raises:
        ValueError: the backbone accepts no mask, the ratio masks all patches or none, the preprocessor's channels are
            not the backbone's, or (in loss, in predict, or with noise) the images have another size.
    """

    headline = ("eval/loss", "less")
    uses_labels = False

    def __init__(
        self,
        backbone: dict | nn.Module,
        decoder: dict | None = None,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, preprocessor)
        require_masking(self.backbone)
        channels, (H, W), *_ = image_spec(self.backbone)
        rows, columns = patch_grid_of(self.backbone)
        self.img_size, self.grid_size, self.patch_size = (H, W), (rows, columns), (H // rows, W // columns)
        self.num_patches = num_patches = rows * columns
        if not isinstance(mask_ratio, (int, float)) or not 1 <= int(num_patches * (1 - mask_ratio)) < num_patches:
            raise ValueError(
                f"mask_ratio {mask_ratio} of {num_patches} patches must leave at least one and mask at least one"
            )
        self.num_visible = int(num_patches * (1 - mask_ratio))
        self.norm_pix_loss = norm_pix_loss
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, self.backbone.embed_dim))
        self.decoder = self._build_decoder(decoder, math.prod(self.patch_size) * channels)

    def _build_decoder(self, decoder: dict | None, patch_dim: int) -> MAEDecoder:
        decoder = dict(decoder or {})
        if isinstance(self.backbone, CRATEMAE):
            decoder = {"depth": self.backbone.arch.depth, "num_heads": self.backbone.arch.num_heads, **decoder}
        if decoder.keys() != {"depth", "num_heads"}:
            raise ValueError(f"decoder needs depth and num_heads, got {', '.join(decoder) or 'neither'}")
        return MAEDecoder(self.backbone.embed_dim, **decoder, patch_dim=patch_dim)

    # Patches ------------------------------------------------------------------------------------------------------

    def patchify(self, images: Tensor) -> Tensor:
        """Split images into patches ``(B, N, h w C)``, ordered (row in patch, column in patch, channel)."""
        h, w = self.patch_size
        return rearrange(images, "B C (gh h) (gw w) -> B (gh gw) (h w C)", h=h, w=w)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Join patches to images ``(B, C, H, W)``."""
        (h, w), (rows, columns) = self.patch_size, self.grid_size
        return rearrange(patches, "B (gh gw) (h w C) -> B C (gh h) (gw w)", gh=rows, gw=columns, h=h, w=w)

    def targets(self, images: Tensor) -> Tensor:
        """Return the regression targets ``(B, N, h w C)``: patches, standardized with ``norm_pix_loss``."""
        patches = self.patchify(images)
        if not self.norm_pix_loss:
            return patches
        mean, deviation = self._statistics(patches)
        return (patches - mean) / deviation

    @staticmethod
    def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)  # unbiased
        return mean, (variance + EPS).sqrt()

    def mask_of(self, noise: Tensor) -> Tensor:
        """Return the mask for noise ``(B, N)``, true for masked; the ``num_visible`` smallest of a row stay visible."""
        visible = noise.argsort(dim=1)[:, : self.num_visible]
        return torch.ones_like(noise, dtype=torch.bool).scatter_(1, visible, False)

    # Task interface -----------------------------------------------------------------------------------------------

    def tensor(self, inputs: Tensor, noise: Tensor | None = None, **_: Tensor) -> Tensor:
        """Return predictions for all patches, masked or not, ``(B, N, h w C)``.

        Without noise nothing is masked, so that the analysis of the encoder is deterministic.
        """
        return self._predictions(inputs, None if noise is None else self._checked_mask(inputs, noise))

    def features(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the CLS token of the unmasked image, ``(B, d)``."""
        return self.backbone(inputs)[:, 0]

    def loss(
        self, inputs: Tensor, sample_seed: Tensor | None = None, noise: Tensor | None = None, **_: Tensor
    ) -> dict[str, Tensor]:
        """Return the mean squared error of the masked patches, ``{'loss': scalar}``.

        If ``noise`` is None, it is drawn from ``sample_seed``, or by PyTorch's generator if there are no seeds.
        """
        if noise is None and sample_seed is None:
            noise = torch.rand(len(inputs), self.num_patches, device=inputs.device)
        elif noise is None:
            noise = random_bits(sample_seed.to(inputs.device), self.num_patches)
        return {"loss": self._loss_by_sample(inputs, noise).mean()}

    def predict(self, inputs: Tensor, sample_idx: Tensor | None = None, noise: Tensor | None = None, **_: Tensor):
        """Return ``[{'loss': (B,), 'sample_idx': (B,)}]``, one dict for the batch.

        An image's mask depends only on its position in the dataset, so that an evaluation is repeatable.
        """
        if noise is None:
            noise = self.noise_of(sample_idx).to(inputs.device)
        return [{"loss": self._loss_by_sample(inputs, noise), "sample_idx": sample_idx}]

    def noise_of(self, sample_idx: Tensor) -> Tensor:
        """Return the masking noise ``(B, N)`` of an evaluation for dataset positions ``(B,)``."""
        if sample_idx is None:
            raise ValueError("the batch has no sample_idx, from which an evaluation draws the masks")
        # NumPy guarantees that the numbers of this legacy generator do not change.
        generators = [np.random.RandomState(position % 2**32) for position in sample_idx.tolist()]
        return torch.from_numpy(np.stack([generator.random_sample(self.num_patches) for generator in generators]))

    def reconstruct(self, inputs: Tensor, noise: Tensor) -> Reconstruction:
        """Mask images and reconstruct them.

        With ``norm_pix_loss``, mean and standard deviation of a patch are not predicted: those of the original patch
        are used.
        """
        mask = self._checked_mask(inputs, noise)
        patches, predicted = self.patchify(inputs), self._predictions(inputs, mask)
        if self.norm_pix_loss:
            mean, deviation = self._statistics(patches)
            predicted = predicted * deviation + mean
        hidden = mask[..., None]
        filled = torch.where(hidden, predicted.to(patches.dtype), patches)
        return Reconstruction(self.unpatchify(patches.masked_fill(hidden, 0)), self.unpatchify(filled), mask)

    def check_data(self, dataset: Any, split: str) -> None:
        require_images(dataset, split, ", whose labels have no effect")
        check_images_fit(dataset, self.backbone, split)

    # Private helpers ----------------------------------------------------------------------------------------------

    def _checked_mask(self, inputs: Tensor, noise: Tensor) -> Tensor:
        if tuple(inputs.shape[-2:]) != self.img_size:
            raise ValueError(
                f"masked images must have the backbone's img_size {self.img_size}, got "
                f"{tuple(inputs.shape[-2:])}: set img_size of the backbone to match the data"
            )
        expected = (len(inputs), self.num_patches)
        if tuple(noise.shape) != expected:
            raise ValueError(f"noise must have shape {expected}, one number per patch, got {tuple(noise.shape)}")
        return self.mask_of(noise)

    def _predictions(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.decoder(self.backbone(inputs, mask, self.mask_token))

    def _loss_by_sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error of each sample's masked patches, ``(B,)``."""
        mask = self._checked_mask(inputs, noise)
        error = (self._predictions(inputs, mask) - self.targets(inputs)).square().mean(dim=-1)
        return (error * mask).sum(dim=1) / mask.sum(dim=1)
