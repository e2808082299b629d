"""The learning rate of the recipes against its formula, as the Runner builds it from the configs."""

import math

import pytest
import torch
from mmengine.optim import OptimWrapper

from crate_mm.engine import load_config, prepare
from crate_mm.registry import OPTIMIZERS, PARAM_SCHEDULERS

STEPS = 1_281_167 // 2048  # steps an epoch of ImageNet-1K


def build(cfg, epochs=None, steps=STEPS):
    weight = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(OPTIMIZERS.build({**cfg.optim_wrapper.optimizer, "params": [weight]}))
    defaults = dict(optimizer=wrapper, epoch_length=steps, end=epochs or cfg.train_cfg.max_epochs)
    return wrapper, PARAM_SCHEDULERS.build(dict(prepare(cfg, world_size=1).param_scheduler), default_args=defaults)


def rates(cfg, epochs, steps):
    wrapper, scheduler = build(cfg, epochs, steps)
    values = []
    for _ in range(epochs * steps):
        values.append(wrapper.param_groups[0]["lr"])
        wrapper.optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_in1k_recipe(size):
    wrapper, scheduler = build(load_config(f"crate_{size}_in1k"))
    peak, W, T = 2.4e-4, 5 * STEPS, 150 * STEPS
    assert (STEPS, W, T) == (625, 3125, 93750)

    def lr(i):
        return peak * scheduler.factor(i)

    assert wrapper.param_groups[0]["lr"] == pytest.approx(0.01 * peak, rel=1e-12)
    expected = {
        0: 0.01 * peak,
        1: peak * (0.01 + 0.99 / W),
        W // 2: peak * (0.01 + 0.99 * (W // 2) / W),
        W: peak,
        W + 1: peak * (1 + math.cos(math.pi / (T - W))) / 2,
        (W + T) // 2: peak * (1 + math.cos(math.pi * ((W + T) // 2 - W) / (T - W))) / 2,
        T - 1: peak * (1 + math.cos(math.pi * (T - 1 - W) / (T - W))) / 2,
    }
    for i, value in expected.items():
        assert lr(i) == pytest.approx(value, rel=1e-12), i
    assert lr((W + T) / 2) == pytest.approx(peak / 2, rel=1e-12)
    assert 0 < lr(T - 1) < 1e-9 * 1e2
    # One continuous curve: no step is larger than the warm-up's slope.
    jumps = [abs(lr(i + 1) - lr(i)) for i in range(0, T - 1)]
    assert max(jumps) <= 0.99 * peak / W * (1 + 1e-9)


def test_the_runner_applies_the_curve_step_by_step():
    cfg = load_config("crate_tiny_in1k")
    values = rates(cfg, epochs=30, steps=7)
    _, scheduler = build(cfg, 30, 7)
    assert values == pytest.approx([2.4e-4 * scheduler.factor(i) for i in range(210)], rel=1e-12)
    assert values.index(max(values)) == 35
    assert values.count(max(values)) == 1


@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_a_shorter_run_keeps_the_shape(epochs):
    values = rates(load_config("crate_base_in1k"), epochs, steps=50)
    peak = values.index(max(values))
    assert peak == epochs * 10  # a fifth of a short run
    assert values[peak] == pytest.approx(2.4e-4)
    assert values[-1] < 0.02 * 2.4e-4
    assert values[:peak] == sorted(values[:peak])


def test_a_resumed_run_follows_its_own_config():
    cfg = load_config("crate_base_in1k")
    _, short = build(cfg, epochs=30, steps=10)
    wrapper, longer = build(cfg, epochs=60, steps=10)
    for _ in range(200):
        short.step()
    longer.load_state_dict(short.state_dict())
    assert wrapper.param_groups[0]["lr"] == pytest.approx(2.4e-4 * longer.factor(200))
    longer.step()
    assert wrapper.param_groups[0]["lr"] == pytest.approx(2.4e-4 * longer.factor(201))


def test_nonsense_is_refused():
    cfg = load_config("crate_base_in1k")
    cfg.param_scheduler.warmup = -1
    with pytest.raises(ValueError, match="warmup >= 0"):
        build(cfg)
