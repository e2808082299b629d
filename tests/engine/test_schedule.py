"""The learning rate of the recipes against its formula, as the Runner builds it from the configs."""

import math

import pytest
import torch
from mmengine.optim import OptimWrapper

from crate_mm.engine import load_config, resolve_config
from crate_mm.engine.optim.schedule import scale_lr
from crate_mm.registry import OPTIMIZERS, PARAM_SCHEDULERS
from tests.training import assert_identical, log_of, train

STEPS = 1_281_167 // 2048  # steps an epoch of ImageNet-1K


def build(cfg, epochs=None, steps=STEPS):
    weight = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(OPTIMIZERS.build({**cfg.optim_wrapper.optimizer, "params": [weight]}))
    defaults = dict(optimizer=wrapper, epoch_length=steps, end=epochs or cfg.train_cfg.max_epochs)
    return wrapper, PARAM_SCHEDULERS.build(
        dict(resolve_config(cfg, world_size=1).param_scheduler), default_args=defaults
    )


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


def test_a_cosine_that_ends_above_zero():
    """ToST's: warm-up from 1e-6 to 1e-3, cosine to 1e-5."""
    cfg = load_config("crate_base_in1k", {"param_scheduler.start_factor": 1e-3, "param_scheduler.end_factor": 0.01})
    cfg.optim_wrapper.optimizer.lr = 1e-3
    _, scheduler = build(cfg, epochs=30, steps=10)
    W, T = 50, 300
    values = [1e-3 * scheduler.factor(i) for i in (0, W, (W + T) // 2, T)]
    assert values == pytest.approx([1e-6, 1e-3, (1e-3 + 1e-5) / 2, 1e-5], rel=1e-12)
    cfg.param_scheduler.end_factor = 1.5
    with pytest.raises(ValueError, match="end_factor must be a fraction of the learning rate, from 0 to 1, got 1.5"):
        build(cfg)


def test_nonsense_is_refused():
    cfg = load_config("crate_base_in1k")
    cfg.param_scheduler.warmup = -1
    with pytest.raises(ValueError, match="warmup >= 0"):
        build(cfg)


# Scaled with the batch ---------------------------------------------------------------------------------------------


def test_the_rate_goes_with_the_batch():
    config = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05))
    scaled = scale_lr(config, dict(base_batch_size=512, enable=True), 1024)
    assert scaled == dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))
    assert config["optimizer"]["lr"] == 5e-4, "a user's config is left as it is"
    for off in (None, dict(base_batch_size=512), dict(base_batch_size=512, enable=False)):
        assert scale_lr(config, off, 1024) is config
    with pytest.raises(ValueError, match="auto_scale_lr scales optim_wrapper.optimizer.lr, which is not set"):
        scale_lr(dict(optimizer=dict(type="AdamW")), dict(base_batch_size=512, enable=True), 1024)


@pytest.mark.parametrize(
    "value",
    [
        dict(enable=True),
        dict(base_batch_size=0, enable=True),
        dict(base_batch_size=-256, enable=True),
        dict(base_batch_size=256.5, enable=True),
        dict(base_batch_size=True, enable=True),
        dict(base_batch_size=256, enable="yes"),
        dict(base_batch_size=256, enabel=True),
        256,
    ],
)
def test_nonsense_of_scaling_is_refused(value):
    cfg = load_config("debug", {"auto_scale_lr": value})
    with pytest.raises(ValueError, match=r"auto_scale_lr must be dict\(base_batch_size=a positive integer"):
        resolve_config(cfg, world_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("scheduled", [True, False])
def test_a_run_and_its_resume_are_scaled_once(tmp_path, scheduled):
    """As a run with the scaled rate in its config, group by group, to the last bit."""
    rules = dict(custom_keys=dict(head=dict(lr_mult=0.5)))
    options = dict(global_batch_size=106, optim_wrapper__paramwise_cfg=rules, train_cfg__max_epochs=2)
    if not scheduled:
        options["param_scheduler"] = None
    scaling = dict(base_batch_size=64, enable=True)
    train(tmp_path / "scaled", auto_scale_lr=scaling, **{**options, "train_cfg__max_epochs": 1})
    scaled = train(tmp_path / "scaled", resume=True, auto_scale_lr=scaling, **options)
    rate = 1e-3 * 106 / 64
    plain = {**options, "optim_wrapper__optimizer__lr": rate}
    train(tmp_path / "plain", **{**plain, "train_cfg__max_epochs": 1})
    assert_identical(scaled["state_dict"], train(tmp_path / "plain", resume=True, **plain)["state_dict"])
    if scheduled:
        rates = [group["initial_lr"] for group in scaled["optimizer"]["param_groups"]]
        assert rates == pytest.approx([rate, rate / 2], rel=1e-12)
    assert log_of(tmp_path / "scaled").count("Lion, learning rate 0.00165625 (0.001 x 106 / 64)") == 2
