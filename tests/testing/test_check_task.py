"""``check_task`` takes the package's tasks, and names the fault of one that breaks the contract."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crate_mm.models import ImageClassifier, MaskedAutoencoder
from crate_mm.testing import check_task
from tests.two_crops import BACKBONE, PREPROCESSOR, TwoCrops, build

HEAD = dict(type="LinearHead", num_classes=10)


def batch(size=5, pixels=8):
    generator = torch.Generator().manual_seed(0)
    return {
        "inputs": torch.randint(0, 256, (size, 1, pixels, pixels), dtype=torch.uint8, generator=generator),
        "labels": torch.randint(10, (size,), generator=generator),
        "sample_idx": torch.arange(size),
        "sample_seed": torch.arange(size) + 7,
    }


def masked():
    mae = dict(type="CRATEMAE", arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=8, patch_size=2, in_channels=1)
    return MaskedAutoencoder(mae, preprocessor=PREPROCESSOR)


@pytest.mark.parametrize(
    "make",
    [
        build,
        masked,
        lambda: ImageClassifier(BACKBONE, HEAD, PREPROCESSOR),
        lambda: ImageClassifier(BACKBONE, HEAD, PREPROCESSOR, freeze_backbone=True),
        lambda: ImageClassifier(BACKBONE, HEAD, PREPROCESSOR, batch_augments=[dict(type="MixUp")]),
        lambda: ImageClassifier(dict(BACKBONE, type="ToST", img_size=16, patch_size=8), HEAD, PREPROCESSOR),
    ],
    ids=["teacher", "masked", "classifier", "probe", "mixing", "batch_norm"],
)
def test_the_packages_tasks_keep_the_contract(make):
    task = make()
    before = copy.deepcopy(task.state_dict())
    draw = torch.random.get_rng_state()
    check_task(task, batch(pixels=task.backbone.img_size[0]))
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), draw)


class NameOfLoss(TwoCrops):
    def loss(self, inputs, **_):
        return {"distance": self.losses(inputs).mean()}


class LossOfSamples(TwoCrops):
    def loss(self, inputs, **_):
        return {"loss": self.losses(inputs)}


class NotFinite(TwoCrops):
    def loss(self, inputs, **_):
        return {"loss": self.losses(inputs).mean() / 0}


class Sum(TwoCrops):
    def loss(self, inputs, **_):
        return {"loss": self.losses(inputs).sum()}


class DrawsByTheBatch(TwoCrops):
    def loss(self, inputs, **_):
        return {"loss": self.losses(inputs + torch.randn(inputs.shape)).mean()}


class OtherCount(TwoCrops):
    def count(self, batch):
        return 3


class NoCount(TwoCrops):
    def count(self, batch):
        return len(batch["inputs"]) / 2


class Unreached(TwoCrops):
    def __init__(self, **options):
        super().__init__(**options)
        self.unused = nn.Linear(2, 2)

    def trainable(self):
        return nn.ModuleList([super().trainable(), self.unused])


class Unconditional(TwoCrops):
    def after_step(self, step, skipped):
        super().after_step(step, False)


class HiddenState(TwoCrops):
    steps = 0

    def after_step(self, step, skipped):
        if not skipped:
            self.steps += 1
            self.teacher["projection"].bias += self.steps

    def predict(self, inputs, sample_idx, **_):
        return [F.mse_loss(self.tensor(inputs), self.tensor(inputs))]


class HiddenTeacher(TwoCrops):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = [torch.zeros(())]

    def after_step(self, step, skipped):
        if not skipped:
            self.hidden[0] += 1

    def predict(self, inputs, sample_idx, **_):
        return [self.losses(inputs) + self.hidden[0]]


class NoList(TwoCrops):
    def predict(self, inputs, **_):
        return self.losses(inputs)


class Features(TwoCrops):
    def features(self, inputs, **_):
        return self.backbone(inputs)


class NotRepeatable(TwoCrops):
    def features(self, inputs, **_):
        return torch.rand(len(inputs), 3)


class NoHeadline(TwoCrops):
    headline = "loss"


class LargeExample(TwoCrops):
    def example(self, size=None):
        return {"inputs": torch.zeros(2, 1, 8, 8)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NameOfLoss, "NameOfLoss.loss: the name 'distance' must start with 'loss'"),
        (LossOfSamples, r"LossOfSamples.loss: 'loss' must be a scalar tensor, got a tensor of \(5,\)"),
        (NotFinite, "NotFinite.loss: 'loss' is inf"),
        (Sum, r"Sum.loss is .* for a batch, but the mean of its two parts, weighted by Sum.count, is"),
        (DrawsByTheBatch, "draw random numbers from the batch's sample_seed, or set mixes_samples to True"),
        (OtherCount, r"OtherCount.count is 3 for a batch, but 3 \+ 3 for its two parts"),
        (NoCount, r"NoCount.count must return a nonnegative integer, got \(2.5, 1.0, 1.5\)"),
        (Unreached, "Unreached: no gradient reaches unused.weight, which is trained: remove it from trainable"),
        (Unconditional, r"Unconditional.after_step changes .* although the step was skipped"),
        (
            HiddenState,
            "HiddenState.after_step gives a different teacher.projection.bias after the state dict is loaded",
        ),
        (HiddenTeacher, "HiddenTeacher.predict differs after its state dict is loaded: keep all state in"),
        (NoList, "NoList.predict must return a list, got Tensor"),
        (Features, r"Features.features must return one vector per sample, \(5, d\), got \(5, 5, 24\)"),
        (NotRepeatable, "NotRepeatable.features returns a different result for the same batch in eval mode"),
        (NoHeadline, "NoHeadline.headline must be a metric and 'greater' or 'less', got 'loss'"),
        (LargeExample, "LargeExample.example must return tensors with one sample, but 'inputs' is not one"),
    ],
)
def test_the_fault_is_named(kind, message):
    torch.manual_seed(0)
    task = kind(backbone=dict(BACKBONE), preprocessor=dict(PREPROCESSOR))
    with pytest.raises(AssertionError, match=message):
        check_task(task, batch())


def test_what_is_no_task_or_no_batch_is_refused():
    with pytest.raises(AssertionError, match="model Linear is no task"):
        check_task(nn.Linear(1, 1), batch())
    with pytest.raises(AssertionError, match="check_task needs a batch of at least two samples"):
        check_task(build(), batch(1))
