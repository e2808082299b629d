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


class Unreached(TwoCrops):
    def __init__(self, **options):
        super().__init__(**options)
        self.unused = nn.Linear(2, 2)

    def trainable(self):
        return nn.ModuleList([super().trainable(), self.unused])


class HiddenState(TwoCrops):
    steps = 0

    def after_step(self, step, skipped):
        if not skipped:
            self.steps += 1
            self.teacher["projection"].bias += self.steps

    def predict(self, inputs, sample_idx, **_):
        return [F.mse_loss(self.tensor(inputs), self.tensor(inputs))]


class HiddenTeacher(HiddenState):
    def after_step(self, step, skipped):
        self.steps += not skipped

    def predict(self, inputs, sample_idx, **_):
        return [self.losses(inputs) + self.steps]


def task_with(**members):
    return type("Mine", (TwoCrops,), members)


def loss_of(compute):
    return task_with(loss=lambda self, inputs, **_: {"loss": compute(self, inputs)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            task_with(loss=lambda self, inputs, **_: {"distance": self.losses(inputs).mean()}),
            "Mine.loss: the name 'distance' must start with 'loss'",
        ),
        (
            loss_of(lambda task, x: task.losses(x)),
            r"Mine.loss: 'loss' must be a scalar tensor, got a tensor of \(5,\)",
        ),
        (loss_of(lambda task, x: task.losses(x).mean() / 0), "Mine.loss: 'loss' is inf"),
        (
            loss_of(lambda task, x: task.losses(x).sum()),
            r"Mine.loss is .* for a batch, but the mean of its two parts, weighted by Mine.count, is",
        ),
        (
            loss_of(lambda task, x: task.losses(x + torch.randn(x.shape)).mean()),
            "draw random numbers from the batch's sample_seed, or set mixes_samples to True",
        ),
        (task_with(count=lambda self, batch: 3), r"Mine.count is 3 for a batch, but 3 \+ 3 for its two parts"),
        (
            task_with(count=lambda self, batch: len(batch["inputs"]) / 2),
            r"Mine.count must return a nonnegative integer, got \(2.5, 1.0, 1.5\)",
        ),
        (Unreached, "Unreached: no gradient reaches unused.weight, which is trained: remove it from trainable"),
        (
            task_with(after_step=lambda self, step, skipped: TwoCrops.after_step(self, step, False)),
            r"Mine.after_step changes .* although the step was skipped",
        ),
        (
            HiddenState,
            "HiddenState.after_step gives a different teacher.projection.bias after the state dict is loaded",
        ),
        (HiddenTeacher, "HiddenTeacher.predict differs after its state dict is loaded: keep all state in"),
        (task_with(predict=lambda self, inputs, **_: self.losses(inputs)), "Mine.predict must return a list, got Tens"),
        (
            task_with(features=lambda self, inputs, **_: self.backbone(inputs)),
            r"Mine.features must return one vector per sample, \(5, d\), got \(5, 5, 24\)",
        ),
        (
            task_with(features=lambda self, inputs, **_: torch.rand(len(inputs), 3)),
            "Mine.features returns a different result for the same batch in eval mode",
        ),
        (task_with(headline="loss"), "Mine.headline must be a metric and 'greater' or 'less', got 'loss'"),
        (
            task_with(example=lambda self, size=None: {"inputs": torch.zeros(2, 1, 8, 8)}),
            "Mine.example must return tensors with one sample: 'inputs' is not such a tensor",
        ),
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
