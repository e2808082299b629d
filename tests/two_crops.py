"""A small self-distillation task: a student imitates a teacher, the moving average of the student."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from crate_mm.models import Task
from crate_mm.registry import BACKBONES, MODELS


@MODELS.register_module()
class TwoCrops(Task):
    """The student sees one of two views of an image, the teacher the other view. The views are not random."""

    headline = ("eval/loss", "less")
    uses_labels = False
    transfer_from = "teacher"

    def __init__(self, backbone, preprocessor, width=8, momentum=0.9):
        super().__init__(MODELS.build(preprocessor))
        self.backbone = BACKBONES.build(backbone)
        self.projection = nn.Linear(self.backbone.embed_dim, width)
        self.teacher = nn.ModuleDict(copy.deepcopy(dict(backbone=self.backbone, projection=self.projection)))
        self.momentum = momentum
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.calls = []

    def trainable(self):
        return nn.ModuleList([self.backbone, self.projection])

    def after_step(self, step, skipped):
        self.calls.append((step, skipped))
        if skipped:
            return
        self.updates += 1
        momentum = 1 - (1 - self.momentum) / (1 + self.updates / 10)  # the schedule's state is a buffer
        for part, student in (("backbone", self.backbone), ("projection", self.projection)):
            for mean, value in zip(self.teacher[part].parameters(), student.parameters()):
                mean.lerp_(value, 1 - momentum.to(mean))

    def tensor(self, inputs, **_):
        return self.projection(self.backbone(inputs)[:, 0])

    def features(self, inputs, **_):
        return self.teacher["backbone"](inputs)[:, 0]

    def losses(self, inputs):
        views = inputs, inputs.flip(-1)
        with torch.no_grad():
            targets = [self.teacher["projection"](self.teacher["backbone"](view)[:, 0]) for view in views]
        guesses = [self.tensor(view) for view in reversed(views)]
        pairs = zip(guesses, targets)
        return sum(-(F.softmax(4 * t, -1) * F.log_softmax(g, -1)).sum(-1) for g, t in pairs) / 2

    def loss(self, inputs, **_):
        return {"loss": self.losses(inputs).mean()}

    def predict(self, inputs, sample_idx, **_):
        return [{"loss": self.losses(inputs), "sample_idx": sample_idx}]

    def example(self, size=None):
        return {"inputs": torch.zeros(1, 1, *(size or (8, 8)))}


BACKBONE = dict(type="CRATE", arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=8, patch_size=4, in_channels=1)
PREPROCESSOR = dict(type="ImagePreprocessor", mean=(0.5,), std=(0.5,))
MODEL = dict(type="TwoCrops", backbone=BACKBONE, preprocessor=PREPROCESSOR)
# Settings for tests.training, which make configs/debug.py train this task.
OPTIONS = dict(
    model=MODEL, val_evaluator=dict(type="ReconstructionLoss"), test_evaluator=dict(type="ReconstructionLoss")
)


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy({**MODEL, **options}))
