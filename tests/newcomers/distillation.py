"""Two-crop self-distillation: a student predicts its teacher's features of the other crop, as in BYOL."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from torch import nn

from crate_mm.datasets.base import Field, SampleDataset
from crate_mm.models import Task
from crate_mm.registry import BACKBONES, DATASETS, METRICS, MODELS


@DATASETS.register_module()
class TwoCrops(SampleDataset):
    """Two crops of an image: random in training; otherwise both are the whole image."""

    def __init__(self, source, size=8, margin=1):
        self.source, self.size, self.margin = DATASETS.build(source), size, margin

    @property
    def spec(self):
        image = Field(torch.uint8, (1, self.size, self.size))
        return {"inputs": image, "other": image, "labels": Field(torch.int64, ())}

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        position, seed = index if isinstance(index, tuple) else (index, None)
        image, label = self.source[position]
        pixels = torch.from_numpy(np.array(image))[None]
        first = second = pixels
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            first, second = self.crop(pixels, generator), self.crop(pixels, generator)
        return {"inputs": first, "other": second, "labels": label, "sample_idx": position}

    def crop(self, pixels, generator):
        top, left = torch.randint(2 * self.margin + 1, (2,), generator=generator).tolist()
        padded = F.pad(pixels, (self.margin,) * 4)
        return padded[:, top : top + self.size, left : left + self.size].clone()


def projection(width, hidden, out):
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


@MODELS.register_module()
class Distillation(Task):
    headline = ("eval/neighbor", "greater")
    transfer_from = "teacher"

    def __init__(self, backbone, preprocessor, width=32, momentum=0.9):
        super().__init__(MODELS.build(preprocessor))
        self.backbone, self.momentum = BACKBONES.build(backbone), momentum
        self.projector = projection(self.backbone.embed_dim, 2 * width, width)
        self.mapping = projection(width, 2 * width, width)
        self.teacher, self.teacher_projector = copy.deepcopy(self.backbone), copy.deepcopy(self.projector)
        self.teacher.requires_grad_(False)
        self.teacher_projector.requires_grad_(False)

    def trainable(self):
        return nn.ModuleDict(dict(backbone=self.backbone, projector=self.projector, mapping=self.mapping))

    @torch.no_grad()
    def after_step(self, step, skipped):
        if skipped:
            return
        for teacher, student in ((self.teacher, self.backbone), (self.teacher_projector, self.projector)):
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)

    def loss(self, inputs, other, **_):
        other = self.data_preprocessor({"inputs": other})["inputs"]
        losses = [self.distance(inputs, other), self.distance(other, inputs)]
        return {"loss": sum(losses) / 2}

    def distance(self, student, teacher):
        guess = self.mapping(self.projector(self.backbone(student)[:, 0]))
        with torch.no_grad():
            goal = self.teacher_projector(self.teacher(teacher)[:, 0])
        return (2 - 2 * F.cosine_similarity(guess, goal)).mean()

    def tensor(self, inputs, **_):  # uses the backbone: tools load the teacher into it and read its layers
        return self.backbone(inputs)[:, 0]

    def features(self, inputs, **_):
        return self.tensor(inputs)

    def predict(self, inputs, labels, **_):  # uses the teacher, which later runs load
        return list(zip(self.teacher(inputs)[:, 0].cpu(), labels.cpu(), strict=True))

    def example(self, size=None):
        spec = self.backbone.input_spec
        return {"inputs": torch.zeros(1, spec.channels, *(size or spec.size))}


@METRICS.register_module()
class NeighborAccuracy(BaseMetric):
    """Percentage of samples with the same label as their nearest neighbor by the teacher's features."""

    default_prefix = "eval"

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        features = F.normalize(torch.stack([feature for feature, _ in results]).float())
        labels = torch.stack([label for _, label in results])
        nearest = (features @ features.T).fill_diagonal_(-2).argmax(1)
        return {"neighbor": 100 * (labels[nearest] == labels).float().mean().item()}
