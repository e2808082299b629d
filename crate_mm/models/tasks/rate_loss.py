"""SimDINO's loss: compression and expansion of the features of crops.

Source: Wu et al., "Simplifying DINO via Coding Rate Regularization", ICML 2025, arXiv 2502.10385, and its official
code, github.com/RobinWu218/SimDINO.
Shapes: B images of a micro-batch, M images of a step, n crops of an image, the first two of them global, p dimensions
of the features, m images of a covariance group.
"""

import math

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_dist_info
from torch import Tensor

GLOBAL_CROPS = 2


def rate_distillation_loss(
    student: Tensor,
    teacher: Tensor,
    num_crops: int,
    eps: float = 0.05,
    expansion_of: str = "mean",
    coeff: float = 1.0,
    group_size: int | str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return SimDINO's loss ``- coeff compression - expansion``, and its two terms, for a whole batch of B images.

    The compression is the mean cosine similarity of the teacher's global crops and the student's other crops. The
    expansion is the coding rate of the global crops' features, see ``expansion``. Both are computed in float32 or
    float64, also under autocast.

    Args:
        student: features ``(num_crops B, p)``, all images of the first crop first. Crops 0 and 1 are global.
        teacher: features ``(2 B, p)`` of the global crops. They get no gradient.
        num_crops: n.
        eps: constant of the coding rate, the squared precision.
        expansion_of: 'student' for the student's features, 'mean' for the mean of the student's and the teacher's.
        coeff: factor of the compression.
        group_size: m; None or 'batch' for one covariance of all images.

    Raises:
        ValueError: the shapes do not fit, or an argument is invalid.
    """
    images, remainder = divmod(len(student), num_crops)
    if num_crops < GLOBAL_CROPS or remainder or len(teacher) != GLOBAL_CROPS * images:
        raise ValueError(
            f"expected features of {num_crops} crops (at least {GLOBAL_CROPS}) and of {GLOBAL_CROPS} teacher crops of "
            f"the same images, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    similarity = compression(student, teacher, num_crops)
    spread = expansion(expanded_features(student, teacher, expansion_of), eps, group_size)
    return -coeff * similarity - spread, similarity, spread


def compression(student: Tensor, teacher: Tensor, num_crops: int) -> Tensor:
    """Return the mean cosine similarity over the ``2 n - 2`` pairs of a teacher crop and a different student crop."""
    student, teacher = (at_least_float32(features) for features in (student, teacher.detach()))
    with torch.autocast(student.device.type, enabled=False):
        crops, targets = student.unflatten(0, (num_crops, -1)), teacher.unflatten(0, (GLOBAL_CROPS, -1))
        similarities = F.cosine_similarity(targets[:, None], crops[None], dim=-1).mean(-1)  # (2, n)
        return (similarities.sum() - similarities.diagonal().sum()) / (GLOBAL_CROPS * (num_crops - 1))


def patch_similarity(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the similarity of masked patches; the negative of it is iBOT's loss in SimDINOv2.

    The cosine similarity of student and teacher is averaged over an image's masked patches, then over images. An image
    without a masked patch counts as 0.

    Args:
        student, teacher: features ``(n, p)`` of the n masked patches, image by image. The teacher gets no gradient.
        mask: ``(B, N)``, true for masked patches.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    with torch.autocast(student.device.type, enabled=False):
        weights = 1 / mask.sum(1, keepdim=True).clamp(min=1).to(student.dtype)
        return (F.cosine_similarity(student, teacher, dim=-1) * weights.expand_as(mask)[mask]).sum() / len(mask)


def expanded_features(student: Tensor, teacher: Tensor, expansion_of: str) -> Tensor:
    """Return the features of the global crops whose coding rate is maximized, ``(2, B, p)``."""
    if expansion_of not in ("mean", "student"):
        raise ValueError(f"expansion_of must be 'mean' or 'student', got {expansion_of!r}")
    features = at_least_float32(student[: len(teacher)])
    if expansion_of == "mean":
        features = (features + at_least_float32(teacher.detach())) / 2
    return features.unflatten(0, (GLOBAL_CROPS, -1))


def expansion(features: Tensor, eps: float, group_size: int | str | None = None) -> Tensor:
    """Return the coding rate of features ``(2, M, p)``: the mean over both crops and over groups of m images.

    The rate of a group F ``(m, p)`` is ``gamma / 2 logdet(I + p / (M eps) F^T F)``, with ``gamma = (p + M) / (p M)``:
    the covariance of m images is divided by all M. Groups are consecutive images. The published objective, on 8
    processes of 64 images, has groups of 64; with the official option ``reduce_cov``, there is one group.

    A determinant that cannot be computed is NaN, so that the step is skipped.
    """
    num_images, dim = features.shape[1:]
    size = group_images(num_images, group_size)
    features = at_least_float32(features)
    with torch.autocast(features.device.type, enabled=False):
        groups = features.unflatten(1, (-1, size))  # (2, G, m, p)
        gram = groups @ groups.mT if size < dim else groups.mT @ groups  # both have the same determinant below
        gram = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) + dim / (num_images * eps) * gram
        factor, failed = torch.linalg.cholesky_ex(gram)
        half_logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).masked_fill(failed > 0, torch.nan)
        return _gamma(num_images, dim) / 2 * half_logdet.mean(1).sum()


def gather_features(local: Tensor, total: int) -> Tensor:
    """Gather the features of all processes and return them in the order of the global batch, ``(2, M, p)``.

    Image i of the global batch is on process i modulo the number of processes.
    """
    _, world_size = get_dist_info()
    if world_size == 1:
        return local
    size = math.ceil(total / world_size)
    gathered = all_gather(F.pad(local, (0, 0, 0, size - local.shape[1])).contiguous())
    return torch.stack(gathered, dim=2).flatten(1, 2)[:, :total]


def largest_expansion(num_images: int, dim: int, eps: float, group_size: int | str | None = None) -> float:
    """Return the largest ``expansion`` of M images' unit features of p dimensions.

    The maximum is reached if the features of each group are spread equally over ``min(m, p)`` orthogonal directions. If
    all features are equal, the expansion is 4 % of the maximum with the published settings, 1 % with one group.
    """
    size = group_images(num_images, group_size)
    rank = min(size, dim)
    return _gamma(num_images, dim) / 2 * rank * math.log1p(dim * size / (num_images * eps * rank))


def group_images(num_images: int, group_size: int | str | None) -> int:
    """Return the number m of images of a covariance group; raise ``ValueError`` unless m divides the batch."""
    if group_size in (None, "batch"):
        return num_images
    if type(group_size) is not int or group_size < 1:
        raise ValueError(f"group_size must be a positive integer or 'batch', got {group_size!r}")
    if num_images % group_size:
        raise ValueError(
            f"a batch of {num_images} images has no whole number of covariance groups of {group_size} (group_size): "
            f"set global_batch_size={max(round(num_images / group_size), 1) * group_size}, or group_size='batch'"
        )
    return group_size


def _gamma(num_images: int, dim: int) -> float:
    return (dim + num_images) / (dim * num_images)


def at_least_float32(features: Tensor) -> Tensor:
    """Return features in float32, or unchanged if they are in float64."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
