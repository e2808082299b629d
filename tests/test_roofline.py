"""The cost model records all operators, counts FLOPs and bytes, and predicts times from a device's rates."""

import argparse
import importlib
import json
from collections import Counter
from dataclasses import asdict

import pytest
import torch

from crate_mm import get_model
from crate_mm.analysis.cost import count_complexity
from tests.conftest import ROOT

CONFIG, SMALL = "crate_tiny_in1k", {"model.backbone.img_size": 32}


@pytest.fixture(scope="module")
def part():
    """A file of tools/benchmarks as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "benchmarks"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def steps(part):
    """The operations of CRATE-Tiny's training step on 8 images of 32 x 32, in float32."""
    return part("roofline").config_step(CONFIG, 8, bf16=False, **SMALL)


@pytest.mark.slow
def test_the_multiply_adds_are_those_that_fvcore_counts(steps):
    counted = count_complexity(get_model("crate_tiny", img_size=32), torch.zeros(8, 3, 32, 32)).by_operator
    expected = sum(flops for name, flops in counted.items() if "norm" not in name)
    flops = Counter()
    for step in steps:
        flops[step.phase, step.kind] += step.flops
    assert sum(flops["forward", kind] for kind in ("product", "attention")) == 2 * expected
    assert flops["backward", "product"] == 2 * flops["forward", "product"]
    assert flops["backward", "attention"] == 2.5 * flops["forward", "attention"]


def test_the_optimizer_goes_over_all_parameters(steps):
    """Lion reads and writes weights, gradients and averages in whole passes, as its code has them."""
    size = 4 * sum(p.numel() for p in get_model("crate_tiny", img_size=32).parameters())
    passes = {step.name: step.bytes_moved / size for step in steps if step.phase == "optimizer"}
    assert passes["_foreach_sign_"] == 2
    for name, expected in (("_foreach_mul", 2), ("_foreach_mul_", 2), ("_foreach_add_", 3), ("_foreach_norm", 1)):
        assert passes[name] == pytest.approx(expected, rel=1e-4)  # with factors and norms, single numbers


def test_the_step_takes_what_autograd_keeps_and_the_gradients(part, steps):
    model, storages = get_model("crate_tiny", img_size=32).train(), {}
    pack = lambda tensor: storages.update({tensor.untyped_storage().data_ptr(): tensor.nbytes}) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.randn(8, 3, 32, 32)).sum()
    parameters = {p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters()}
    saved = sum(size for place, size in storages.items() if place not in parameters)
    gradients = sum(parameters.values())
    assert loss.requires_grad
    peak = part("operations").peak_bytes([step for step in steps if step.phase != "optimizer"])
    assert saved < peak < saved + gradients
    # Lion's updates are more here.
    assert part("operations").peak_bytes(steps) == pytest.approx(2 * gradients, rel=1e-3)


@pytest.mark.parametrize(
    "config", ["crate_alpha_base_in21k", "crate_mae_mini_fashion_mnist", "vit_mini_fashion_mnist", "compare/tost"]
)
@pytest.mark.slow
def test_every_family_and_optimizer_is_taken(part, config):
    operations = part("roofline").config_step(config, 4, bf16=True)
    assert {step.phase for step in operations} == {"forward", "backward", "optimizer"}
    products = [step for step in operations if step.kind == "product"]
    assert torch.bfloat16 in {step.dtype for step in products}
    forward = sum(step.flops for step in products if step.phase == "forward")
    assert 1.5 * forward < sum(step.flops for step in products if step.phase == "backward") < 2.5 * forward


def operation(part, name, read, written, kind="memory", phase="forward", flops=0, tokens=0):
    return part("operations").Operation(name, phase, kind, flops, read, written, torch.float32, tokens)


def test_what_stands_between_two_products_is_one_operation_that_keeps_nothing_for_itself(part):
    listed = [
        operation(part, "mm", {0: 40}, {1: 10}, "product"),
        operation(part, "add", {1: 10, 2: 10}, {3: 10}),
        operation(part, "relu", {3: 10}, {4: 10}),
        operation(part, "mm", {4: 10, 0: 40}, {5: 10}, "product"),
        operation(part, "mul", {5: 10}, {6: 10}, phase="optimizer"),
        operation(part, "mul", {6: 10}, {7: 10}, phase="optimizer"),
    ]
    first, between, second, *optimizer = part("operations").fused(listed)
    assert (first, second, optimizer) == (listed[0], listed[3], listed[4:])
    assert (between.read, between.written) == ({1: 10, 2: 10}, {4: 10})
    # 1 and 3 are there together, then 3 and 4; 0 and 2 were there before.
    assert part("operations").peak_bytes(listed) == 20


@pytest.fixture
def device(part):
    """One that multiplies 100 and moves 10 a second, 100 in its cache of 50 bytes."""
    return part("devices").Device(
        name="toy",
        products=100.0,
        attention=((10, 1.0, 2.0), (1000, 100.0, 200.0)),
        bandwidth=10.0,
        cache=50.0,
        cache_bandwidth=100.0,
        operator_s=1.0,
        write_factor=2.0,
    )


def test_an_operation_takes_the_longer_of_arithmetic_and_memory(part, device):
    listed = [
        operation(part, "mm", {0: 60}, {1: 10}, "product", flops=1000),
        operation(part, "relu", {1: 10}, {2: 100}),
        operation(part, "add_", {2: 100, 3: 10}, {2: 100}),
        operation(part, "flash", {2: 10}, {4: 1}, "attention", flops=50, tokens=100),
    ]
    product, fresh, in_place, attention = part("roofline").timed(listed, device)
    assert (product.arithmetic, product.memory, product.device) == (10, pytest.approx(6.1), 10)
    assert fresh.memory == pytest.approx(0.1 + 2 * 100 / 10)  # read in the cache; the write counts twice
    assert in_place.memory == pytest.approx(110 / 10 + 100 / 10)
    assert attention.arithmetic == pytest.approx(5.0)  # 10 FLOP/s at 100 tokens


def test_a_host_that_waits_adds_and_one_that_is_ahead_does_not(part, device):
    listed = [operation(part, "mm", {0: 60}, {1: 10}, "product", flops=1000)] * 2
    ahead = part("roofline").predict(listed, device)
    assert (ahead.seconds, ahead.bound) == (20, "arithmetic")
    values = {**asdict(device), "waits": True}
    waiting = part("roofline").predict(listed, part("devices").Device(**values))
    assert waiting.seconds == pytest.approx(2 * (10 + 6.1) + 2)
    values = {**asdict(device), "operator_s": 50.0}
    assert part("roofline").predict(listed, part("devices").Device(**values))[::2] == (100, "host")


def test_summing_gradients_is_hidden_but_for_the_last_bucket(part):
    unhidden = part("roofline").unhidden_all_reduce
    assert unhidden(91e6, 1, 1.0) == 0
    last = unhidden(91e6, 16, backward=10.0)
    assert 2 * 15 / 16 * 25e6 / 40e9 < last < 1.3e-3
    assert unhidden(91e6, 16, backward=0.0) == pytest.approx(4 * last)
    assert unhidden(91e6, 8, backward=10.0) < last


@pytest.mark.slow
def test_runs_are_predicted_for_gpus_that_are_not_there(part):
    args = argparse.Namespace(batch=None, micro_batch=512, precision="bf16", cores=16, images=1_281_167)
    h200 = part("devices").device_of("h200", "bf16")
    one, many = (part("roofline").predict_run(CONFIG, h200, gpus, 748.0, args) for gpus in (1, 1024))
    assert (one["batch_a_gpu"], many["batch_a_gpu"]) == ("4 x 512", "1 x 2")
    assert one["epoch_s"] > 1_281_167 / min(one["images_per_s_a_gpu"], 16 * 748)
    assert one["epoch_bound_by"] == "loading"
    assert many["bound_by"] == "host"  # two images are too few for a GPU
    assert many["images_per_s_a_gpu"] < one["images_per_s_a_gpu"] / 10


def test_rates_that_were_measured_are_read_again(part, device, tmp_path):
    path = tmp_path / "device.json"
    path.write_text(json.dumps({"arguments": {"precision": "float32", "device": asdict(device)}}))
    read = part("devices").device_of(str(path), "float32")
    assert read.attention_rate(100, backward=True) == pytest.approx(20)
    assert read.bandwidth == device.bandwidth
    for name, precision, message in (
        (str(path), "bf16", "was measured in float32, not in bf16"),
        ("h100", "float32", "h100 is given in bf16 only"),
        ("h1000", "bf16", "there is no device 'h1000': choose here, a100"),
    ):
        with pytest.raises(ValueError, match=message):
            part("devices").device_of(name, precision)
