"""A task: a model with its loss, its predictions and their metric. This example predicts the label as a number.

CONTRIBUTING.md lists what a task can define.
"""

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from torch import nn

from crate_mm.models import Task
from crate_mm.registry import BACKBONES, METRICS, MODELS


@MODELS.register_module()
class MyTask(Task):
    """Regression of the label."""

    headline = ("eval/error", "less")  # the metric that selects the best epoch

    def __init__(self, backbone, preprocessor):
        super().__init__(MODELS.build(preprocessor))
        self.backbone = BACKBONES.build(backbone)
        self.number = nn.Linear(self.backbone.embed_dim, 1)

    def tensor(self, inputs, **_):  # one number per image, (B,)
        return self.number(self.backbone(inputs)[:, 0])[:, 0]

    def loss(self, inputs, labels, **_):  # names begin with "loss"; each loss is a mean over the samples
        return {"loss": F.mse_loss(self.tensor(inputs), labels.float())}

    def predict(self, inputs, labels, **_):  # a list, which the metric receives
        return [(self.tensor(inputs) - labels).abs()]

    def example(self, size=None):  # a batch of one, to count multiply-adds
        spec = self.backbone.input_spec
        return {"inputs": torch.zeros(1, spec.channels, *(size or spec.size))}


@METRICS.register_module()
class MyTaskError(BaseMetric):
    """Mean absolute error."""

    default_prefix = "eval"

    def process(self, data_batch, data_samples):
        self.results += torch.cat(data_samples).tolist()

    def compute_metrics(self, results):
        return {"error": sum(results) / len(results)}
