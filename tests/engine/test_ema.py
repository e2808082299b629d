"""Averaged weights, worked out by hand from the weights after each step, in a model with BatchNorm."""

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from crate_mm.engine import Runner, load_config
from crate_mm.models import Backbone, InputSpec
from crate_mm.registry import BACKBONES, HOOKS
from tests.training import assert_same_states, train

MOMENTUM = 0.1
SEEN: dict[str, list[dict]] = {}


@BACKBONES.register_module()
class NormedBackbone(Backbone):
    """Two tokens of 8 by 8 gray pixels, normalised over the batch."""

    def __init__(self, embed_dim: int = 6) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.conv = nn.Conv2d(1, embed_dim, (4, 8), (4, 8))
        self.norm = nn.BatchNorm2d(embed_dim)

    @property
    def input_spec(self):
        return InputSpec(1, (8, 8))

    def forward(self, images):
        return self.norm(self.conv(images)).flatten(2).mT


@HOOKS.register_module()
class Records(Hook):
    """Keep the model as it is after each step and as it is validated."""

    def before_train(self, runner):
        SEEN.update(steps=[], validated=[])

    def _keep(self, runner, kind):
        SEEN[kind].append({name: value.clone() for name, value in runner.model.state_dict().items()})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._keep(runner, "steps")

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self._keep(runner, "validated")


OPTIONS = dict(
    ema_momentum=MOMENTUM,
    global_batch_size=106,
    model__backbone=dict(type="NormedBackbone"),
    custom_hooks=[dict(type="Records")],
    train_cfg__max_epochs=2,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two epochs, of three steps each: its folder, its last checkpoint, and what the hook saw."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, **OPTIONS), dict(SEEN)


def averages(steps):
    """The average begins with the weights after the first step; BatchNorm's statistics are the last step's."""
    average = {name: value.double() for name, value in steps[0].items()}
    for step in steps[1:]:
        for name, value in step.items():
            share = 1.0 if "running" in name or "tracked" in name else MOMENTUM
            average[name] = (1 - share) * average[name] + share * value.double()
    return average


@pytest.mark.slow
def test_the_average_is_its_formula_and_is_what_is_validated_and_saved(whole):
    _, checkpoint, seen = whole
    steps, validated = seen["steps"], seen["validated"]
    assert len(steps) == 6
    assert len(validated) == 2
    for count, found in ((3, validated[0]), (6, validated[1]), (6, checkpoint["state_dict"])):
        for name, value in averages(steps[:count]).items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7, msg=name)
    name = "backbone.conv.weight"
    assert not torch.allclose(checkpoint["state_dict"][name], steps[-1][name], rtol=1e-3)
    for name, value in steps[-1].items():
        assert torch.equal(checkpoint["ema_state_dict"][f"module.{name}"], value), name
    assert torch.equal(checkpoint["state_dict"]["backbone.norm.running_mean"], steps[-1]["backbone.norm.running_mean"])


@pytest.mark.slow
def test_a_resumed_run_averages_on(whole, tmp_path):
    train(tmp_path, param_scheduler__end=2, **{**OPTIONS, "train_cfg__max_epochs": 1})
    resumed = train(tmp_path, resume=True, **OPTIONS)
    assert_same_states(resumed, whole[1])


@pytest.mark.parametrize("momentum", [MOMENTUM, None])
@pytest.mark.slow
def test_a_test_is_of_the_average(whole, tmp_path, momentum):
    folder, checkpoint, _ = whole
    options = {**OPTIONS, "ema_momentum": momentum}
    cfg = load_config("debug", {key.replace("__", "."): value for key, value in options.items()})
    cfg.work_dir, cfg.load_from = str(tmp_path), str(folder / "epoch_2.pth")
    runner = Runner.from_cfg(cfg)
    runner.test()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name]), name
