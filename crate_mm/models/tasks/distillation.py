"""Self-distillation of crops: SimDINO, SimDINOv2, and DINO for comparison.

Sources: Wu et al., "Simplifying DINO via Coding Rate Regularization", ICML 2025, arXiv 2502.10385, and the official
code, github.com/RobinWu218/SimDINO; Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV
2021, arXiv 2104.14294; for masked patches, Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR
2022, arXiv 2111.07832.
Shapes: B images of a micro-batch, M images of a step, n crops of an image, the first two of them global, p dimensions
of the features, m images of a covariance group, N patches of a global crop.
"""

import copy
import math
from collections import deque
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce, get_dist_info
from torch import Tensor, nn

from ...datasets.base import dataset_of, require_images
from ...registry import MODELS
from ..backbone import require_masking
from .base import ImageTask, check_images_fit
from .heads import ProjectionHead
from .masked import random_masks
from .preprocessor import refuse_raw
from .random_state import random_state, replay
from .rate_loss import (
    GLOBAL_CROPS,
    compression,
    expanded_features,
    expansion,
    gather_features,
    group_images,
    largest_expansion,
    patch_similarity,
    rate_distillation_loss,
)

__all__ = ["ProjectionHead", "SelfDistillation", "rate_distillation_loss"]


class _MicroBatch(NamedTuple):
    """State of the step that the expansion of one micro-batch needs (see ``rate_loss``).

    Attributes:
        slots: positions of the micro-batch's images among the images of the step, ``(B,)``.
        total: M.
        step: features of all images of the step, ``(2, M, p)``; None if this process has a single
            micro-batch: ``loss`` then gathers the features.
        mask: masked patches of the global crops, ``(2 B, N)``, or None.
        teacher: the teacher's features, ``(2 B, p)``, and those of the masked patches, or None.
        random_state: state of the random generators from which the student's features were computed, or None.
    """

    slots: Tensor
    total: int
    step: Tensor | None = None
    mask: Tensor | None = None
    teacher: tuple[Tensor, Tensor | None] | None = None
    random_state: tuple[Tensor, ...] | None = None


@MODELS.register_module()
class SelfDistillation(ImageTask):
    """A student learns its teacher's features of other crops; the teacher is the moving average of the student.

    The student sees all crops, the teacher the first two, which are global. The projected features of the first tokens
    are compared. Features for nearest neighbors are the teacher's first tokens. A later run starts from the teacher, or
    from the student if ``transfer_from`` is 'backbone'.

    A step of ``objective='rate'`` is the same for any number of processes and micro-batches: the covariance groups are
    those of the global batch. Several micro-batches cost a second forward pass of the student's global crops.

    Args:
        backbone: config of ``BACKBONES`` or a ``Backbone`` of images.
        objective: 'rate' for SimDINO, see ``rate_distillation_loss``; 'dino' for DINO's cross entropy between
            prototypes, with a centered and sharpened teacher.
        momentum: momentum of the moving average at the first step; it grows to 1 along a cosine over the run.
        eps, expansion_of, coeff, group_size: as for ``rate_distillation_loss``; M is the global batch.
        hidden_dim, out_dim: as for ``ProjectionHead``.
        prototypes: number of DINO's prototypes.
        student_temp, teacher_temp: temperatures of DINO's softmax.
        teacher_temp_start, teacher_temp_warmup: the teacher's temperature at the first step (None: ``teacher_temp``)
            and the fraction of the run in which it changes linearly to ``teacher_temp`` (official code: by epoch).
        patch_weight: weight of iBOT's loss, only for 'rate': the student sees the global crops with masked patches, and
            learns the teacher's features of these patches with the same head. 1 for SimDINOv2, 0 for no masks.
        mask_probability: probability that a global crop is masked.
        mask_ratio: smallest and largest fraction of masked patches of a masked crop. The patches are drawn at
            random. The official code masks rectangles, in exactly half of a batch's crops.
        center_momentum: momentum of the center, the mean of DINO's teacher outputs.
        preprocessor: config of ``MODELS``, or a module.

    Training batches have ``inputs``, a list of images ``(B, C, H, W)``, one tensor per crop, as from ``Views``. With
    ``sample_seed``, int64 ``(B,)``, masks do not depend on the number of processes. If the backbone can, it
    interpolates its position embeddings for crops of other sizes. Evaluated batches have ``inputs`` ``(B, C, H, W)``,
    ``labels`` and ``sample_idx``.

    The log has ``compression``, ``expansion``, ``expansion_max`` (the largest possible value for this batch) and, with
    masks, ``patch_similarity``. If the features collapse, the expansion falls to a few percent of ``expansion_max``.

    Raises:
        ValueError: an argument is invalid, or (in loss) there are fewer than two crops.
    """

    headline = ("eval/knn_top1", "greater")
    transfer_from = "teacher"
    logged = ("compression", "expansion", "expansion_max", "patch_similarity")

    def __init__(
        self,
        backbone: dict | nn.Module,
        objective: str = "rate",
        momentum: float = 0.996,
        eps: float = 0.05,
        expansion_of: str = "mean",
        coeff: float = 1.0,
        group_size: int | str = 64,
        hidden_dim: int = 2048,
        out_dim: int = 256,
        prototypes: int = 65536,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
        teacher_temp_start: float | None = None,
        teacher_temp_warmup: float = 0.3,
        patch_weight: float = 0.0,
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, preprocessor)
        if objective not in ("rate", "dino"):
            raise ValueError(f"objective must be 'rate' or 'dino', got {objective!r}")
        if expansion_of not in ("mean", "student"):
            raise ValueError(f"expansion_of must be 'mean' or 'student', got {expansion_of!r}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum!r}")
        if not min(eps, student_temp, teacher_temp) > 0:
            raise ValueError(f"eps {eps}, student_temp {student_temp} and teacher_temp {teacher_temp} must be above 0")
        if patch_weight and objective != "rate":
            raise ValueError(f"patch_weight {patch_weight} needs objective='rate', got {objective!r}")
        if not (0 <= mask_probability <= 1 and len(mask_ratio) == 2 and 0 < mask_ratio[0] <= mask_ratio[1] <= 1):
            raise ValueError(
                "mask_probability must be from 0 to 1 and mask_ratio two increasing fractions above 0, got "
                f"{mask_probability} and {mask_ratio}"
            )
        if teacher_temp_start is not None and not (teacher_temp_start > 0 and 0 < teacher_temp_warmup <= 1):
            raise ValueError(
                f"teacher_temp_start {teacher_temp_start} must be above 0, and teacher_temp_warmup "
                f"{teacher_temp_warmup} a fraction of the run"
            )
        group_images(0, group_size)  # raises for an invalid size
        self.backbone.interpolate_positions()
        self.objective, self.momentum = objective, momentum
        self.eps, self.expansion_of, self.coeff, self.group_size = eps, expansion_of, coeff, group_size
        self.student_temp, self.teacher_temp, self.center_momentum = student_temp, teacher_temp, center_momentum
        norm, is_dino = self.backbone.head_settings.get("norm", True), objective == "dino"
        self.projector = ProjectionHead(
            self.backbone.embed_dim, hidden_dim, out_dim, norm, prototypes if is_dino else None
        )
        self.teacher = nn.ModuleDict(copy.deepcopy({"backbone": self.backbone, "projector": self.projector}))
        self.teacher.requires_grad_(False).eval()
        self.teacher_temp_start, self.teacher_temp_warmup = teacher_temp_start, teacher_temp_warmup
        self.patch_weight, self.mask_probability, self.mask_ratio = patch_weight, mask_probability, mask_ratio
        if is_dino:
            self.register_buffer("center", torch.zeros(prototypes))
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.mask_token = None
        if patch_weight:
            require_masking(self.backbone)
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, self.backbone.embed_dim))
        self._micro_batches: deque[_MicroBatch] = deque()
        self._teacher_sum: Tensor | None = None  # DINO: sum of this step's teacher outputs, and their number

    def train(self, mode: bool = True) -> "SelfDistillation":
        super().train(mode)
        self.teacher.eval()  # without stochastic depth, and with BatchNorm's running statistics
        return self

    def trainable(self) -> nn.Module:
        student = self._student()
        if self.mask_token is not None:
            student["masks"] = nn.ParameterDict({"mask_token": self.mask_token})
        return student

    def forward(self, inputs: Tensor | list[Tensor], *args: Tensor, mode: str = "tensor", **batch: Tensor) -> Any:
        """As ``ImageTask.forward``; with ``mode='loss'``, ``inputs`` are a list of crops."""
        if not isinstance(inputs, (list, tuple)):
            return super().forward(inputs, *args, mode=mode, **batch)
        for crop in inputs:
            refuse_raw(crop)
        return super(ImageTask, self).forward(inputs, *args, mode=mode, **batch)

    # Training -----------------------------------------------------------------------------------------------------

    def before_step(self, batches: list[dict], total: int) -> None:
        self._micro_batches.clear()
        self._teacher_sum = None
        rank, world_size = get_dist_info()
        if self.objective != "rate":
            return
        group_images(total, self.group_size)
        if len(batches) * world_size == 1:
            return  # the micro-batch is the whole batch
        ends = [0]
        for batch in batches:
            ends.append(ends[-1] + len(batch["inputs"][0]))
        if ends[-1] != len(range(rank, total, world_size)):
            raise ValueError(
                f"process {rank} has {ends[-1]} of the {total} images of a step, expected "
                f"{len(range(rank, total, world_size))}: use GlobalBatchSampler, which group_size requires"
            )
        slots = (rank + world_size * torch.arange(ends[-1], device=self._device)).split(
            [end - start for start, end in pairwise(ends)]
        )
        if len(batches) == 1:
            self._micro_batches.append(_MicroBatch(slots[0], total))
            return
        computed = []
        for batch in batches:
            batch = self.data_preprocessor(batch, True)
            crops, state = batch["inputs"][:GLOBAL_CROPS], random_state(self._device)
            mask = self._mask(crops, batch.get("sample_seed"))
            student = self._global_features(self._student(), crops, mask, self.mask_token)
            computed.append((student[0], mask, self._global_features(self.teacher, crops, mask), state))
        local = [expanded_features(own, teacher[0], self.expansion_of) for own, _, teacher, _ in computed]
        step = gather_features(torch.cat(local, dim=1), total)
        for own, (_, mask, teacher, state) in zip(slots, computed):
            self._micro_batches.append(_MicroBatch(own, total, step, mask, teacher, state))

    def loss(self, inputs: list[Tensor], sample_seed: Tensor | None = None, **_: Tensor) -> dict[str, Tensor]:
        """Return ``{'loss': scalar}``, and the values of ``logged`` with ``objective='rate'``."""
        if not isinstance(inputs, (list, tuple)) or len(inputs) < GLOBAL_CROPS:
            raise ValueError(
                f"expected a list of at least {GLOBAL_CROPS} crops of each image: use the dataset type='Views'"
            )
        crops, micro_batch = list(inputs), self._micro_batches.popleft() if self._micro_batches else None
        mask, targets, state = micro_batch[3:] if micro_batch else (None, None, None)
        mask = self._mask(crops, sample_seed) if mask is None else mask
        with replay(state, self._device):
            student, patches = self._global_features(self._student(), crops[:GLOBAL_CROPS], mask, self.mask_token)
        if len(crops) > GLOBAL_CROPS:
            student = torch.cat([student, self._features(self._student(), crops[GLOBAL_CROPS:])])
        if targets is None:
            with torch.no_grad():
                targets = self._global_features(self.teacher, crops[:GLOBAL_CROPS], mask)
        teacher, patch_targets = targets
        if self.objective == "dino":
            return {"loss": self._cross_entropy(student, teacher, len(crops))}
        similarity = compression(student, teacher, len(crops))
        spread, num_images, group_size = self._expansion(student, teacher, micro_batch)
        largest = largest_expansion(num_images, student.shape[1], self.eps, group_size)
        losses = {
            "loss": -self.coeff * similarity - spread,
            "compression": similarity.detach(),
            "expansion": spread.detach(),
            "expansion_max": spread.new_full((), largest),
        }
        if mask is not None:
            masked = patch_similarity(patches, patch_targets, mask)
            losses |= {"loss": losses["loss"] - self.patch_weight * masked, "patch_similarity": masked.detach()}
        return losses

    def after_step(self, step: int, skipped: bool) -> None:
        teacher_sum, self._teacher_sum = self._teacher_sum, None
        if skipped:
            return
        momentum = self.momentum_at(step)
        for slow, fast in zip(self.teacher.parameters(), self._student().parameters(), strict=True):
            slow.mul_(momentum).add_(fast, alpha=1 - momentum)
        for slow, fast in zip(self.teacher.buffers(), self._student().buffers(), strict=True):
            slow.copy_(fast)  # BatchNorm's statistics are those of the last step
        if teacher_sum is not None:
            all_reduce(teacher_sum)
            self.center.lerp_(teacher_sum[:-1] / teacher_sum[-1], 1 - self.center_momentum)
        if self.objective == "dino":
            self.steps.fill_(step)

    def momentum_at(self, step: int) -> float:
        """Return the momentum after a step, counted from 1; it is constant if the run's length is unknown."""
        if self.total_steps is None:
            return self.momentum
        progress = min((step - 1) / self.total_steps, 1)
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    def after_transfer(self) -> None:
        self.teacher["backbone"].load_state_dict(self.backbone.state_dict())

    # Evaluation ---------------------------------------------------------------------------------------------------

    def tensor(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the student's first token of normalized images, ``(B, d)``."""
        return self.backbone(inputs)[:, 0]

    def features(self, inputs: Tensor, **_: Tensor) -> Tensor:
        """Return the teacher's first token of normalized images, ``(B, d)``."""
        return self.teacher["backbone"](inputs)[:, 0]

    def predict(self, inputs: Tensor, labels: Tensor | None = None, sample_idx: Tensor | None = None, **_: Tensor):
        """Return ``[{'features': (B, d), 'labels': (B,), 'sample_idx': (B,)}]``, one dict for the batch."""
        return [{"features": self.features(inputs), "labels": labels, "sample_idx": sample_idx}]

    def check_data(self, dataset: Any, split: str) -> None:
        if split != "train":
            require_images(dataset, split)
            check_images_fit(dataset, self.backbone, split)
            return
        fields = (dataset_of(dataset).spec or {}).get("inputs")
        if not isinstance(fields, list) or len(fields) < GLOBAL_CROPS:
            raise ValueError(
                f"{split}_dataloader must give at least {GLOBAL_CROPS} crops of each image: use type='Views' with "
                "views=[dict(num=2, transforms=[...]), dict(num=8, transforms=[...])]"
            )
        check_images_fit(dataset, self.backbone, split)

    # Private helpers ----------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return next(self.projector.parameters()).device

    def _student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"backbone": self.backbone, "projector": self.projector})

    @staticmethod
    def _features(model: nn.ModuleDict, crops: list[Tensor]) -> Tensor:
        """Return the projected features ``(n B, p)`` of crops by the student or teacher, one pass for each size."""
        passes = [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[1:])]
        return torch.cat([model["projector"](model["backbone"](images)[:, 0]) for images in passes])

    def _global_features(
        self, model: nn.ModuleDict, crops: list[Tensor], mask: Tensor | None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``_features`` of the global crops and, with a mask ``(2 B, N)``, those of the masked patches.

        The masked patches are hidden from the model only if ``mask_token`` is given.
        """
        if mask is None:
            return self._features(model, crops), None
        hidden = () if mask_token is None else (mask, mask_token)
        tokens = model["backbone"](torch.cat(crops), *hidden)
        return model["projector"](tokens[:, 0]), model["projector"](tokens[:, 1:][mask])

    def _mask(self, crops: list[Tensor], seeds: Tensor | None) -> Tensor | None:
        """Return the mask of the global crops ``(2 B, N)``, drawn from the samples' seeds; None for no masks."""
        if not self.patch_weight:
            return None
        layout = self.backbone.layout(crops[0])
        N = layout.rows * layout.columns
        if crops[0].shape != crops[1].shape:
            raise ValueError(f"masked crops must have one size, got {tuple(crops[0].shape)}, {tuple(crops[1].shape)}")
        if seeds is None:
            seeds = torch.randint(2**62, (len(crops[0]),), device=self._device)
        mask = random_masks(seeds.to(self._device), GLOBAL_CROPS, N, self.mask_probability, self.mask_ratio)
        return mask.transpose(0, 1).flatten(0, 1)

    def _expansion(
        self, student: Tensor, teacher: Tensor, micro_batch: _MicroBatch | None
    ) -> tuple[Tensor, int, int | str]:
        """Return the expansion of the step's images, their number and the group size.

        Only this micro-batch's features have a gradient. The gradient is multiplied by M / B, because the training loop
        multiplies the loss of a micro-batch by B / M.
        """
        own = expanded_features(student, teacher, self.expansion_of)
        if micro_batch is None:
            count = own.shape[1]
            # Outside a step, such as in a measurement of memory, a batch may have any size.
            divides = isinstance(self.group_size, int) and count % self.group_size == 0
            group_size = self.group_size if divides else "batch"
            return expansion(own, self.eps, group_size), count, group_size
        slots, total, step = micro_batch.slots, micro_batch.total, micro_batch.step
        step = gather_features(own.detach(), total) if step is None else step
        value = expansion(step.index_copy(1, slots, own), self.eps, self.group_size)
        scaled = value.detach() + total / own.shape[1] * (value - value.detach())
        return scaled, total, self.group_size

    def _cross_entropy(self, student: Tensor, teacher: Tensor, num_crops: int) -> Tensor:
        """Return DINO's loss for similarities to K prototypes, ``(n B, K)`` and ``(2 B, K)``."""
        if self.training:
            summary = torch.cat([teacher.sum(0), teacher.new_full((1,), len(teacher))])
            self._teacher_sum = summary if self._teacher_sum is None else self._teacher_sum + summary
        log_probs = (student / self.student_temp).log_softmax(-1).chunk(num_crops)
        targets = ((teacher - self.center) / self._teacher_temp()).softmax(-1).chunk(GLOBAL_CROPS)
        pairs = [(q, crop) for i, q in enumerate(targets) for j, crop in enumerate(log_probs) if i != j]
        return -sum((q * crop).sum(-1).mean() for q, crop in pairs) / len(pairs)

    def _teacher_temp(self) -> float | Tensor:
        """Return the teacher's temperature of the next step; a tensor, so that the host does not wait for a GPU."""
        if self.teacher_temp_start is None or self.total_steps is None:
            return self.teacher_temp
        progress = (self.steps.to(self.center.dtype) / (self.teacher_temp_warmup * self.total_steps)).clamp(max=1)
        return self.teacher_temp_start + progress * (self.teacher_temp - self.teacher_temp_start)
