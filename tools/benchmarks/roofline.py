"""Predict the cost of a training step of any config on any device, and its bound, from shapes alone.

python tools/benchmarks/roofline.py --configs crate_base_in1k --devices h100 h200 --precision bf16 --gpus 1 16 1024
python tools/benchmarks/roofline.py --configs crate_tiny_in1k --operators
python tools/benchmarks/roofline.py --check --threads 1 --json roofline_check.json

The operators of a step are recorded on fake tensors with their FLOPs and bytes (operations.py). The device's rates
(devices.py) are measured, now or earlier, or derived from data sheets. An operator takes the longer of its arithmetic
and memory times. ``--check`` compares predictions with steps measured here. An epoch is bound by the step or by the
decoding of photographs; the decoding rate per core is measured here unless ``--decode`` gives it.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from devices import GIVEN, Device, device_of
from machine import PRECISIONS, in_precision, least_seconds, report
from mmengine.device import get_device
from operations import Operation, fused, peak_bytes, record_step
from photographs import write_tree

from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.config import load_config, plan_batch
from crate_mm.datasets import ClassificationDataset, ImageNet
from crate_mm.engine.optim.wrapper import OptimWrapper
from crate_mm.engine.parallel.blocks import compile_blocks
from crate_mm.registry import MODELS, OPTIMIZERS

# Bytes/s of a ring all-reduce per GPU: NVLink within a node of eight, 400 Gbit/s per GPU between nodes.
NODE, NVLINK, NETWORK, HOP_S = 8, 350e9, 40e9, 10e-6
BUCKET = 25e6  # bytes of gradients per all-reduce of DistributedDataParallel, during the backward pass
CHECKPOINT_S = 0.7  # seconds of CRATE-Base's checkpoint, written and verified (results/checkpoint.json)


class Timed(NamedTuple):
    """An operation with its seconds of arithmetic, of memory traffic, and in total on the device."""

    operation: Operation
    arithmetic: float
    memory: float
    device: float


class Prediction(NamedTuple):
    """A step on one device: seconds, in total and by cause, bound, and bytes in addition to weights and state."""

    seconds: float
    by: dict[str, float]
    bound: str
    bytes: int


def config_step(name: str, batch: int, bf16: bool, **overrides) -> list[Operation]:
    """Return the operations of a training step of a config."""
    cfg = load_config(name, overrides)
    with torch.device("meta"):
        task = MODELS.build(cfg.model)
    leave_out_mixing(task)

    def make_batch() -> dict[str, torch.Tensor]:
        return batch_of(task, batch)

    return record_step(task, make_batch, lambda params: build_wrapper(cfg, params), bf16)


def leave_out_mixing(task: torch.nn.Module) -> None:
    """Remove batch mixing: its random choices change the operations. It costs one or two passes over the images."""
    if getattr(task, "batch_augments", None) is not None:
        task.batch_augments = None


def batch_of(task: torch.nn.Module, batch: int) -> dict[str, torch.Tensor]:
    """Return a loader's batch of black images of class 0."""
    shape = task.example()["inputs"].shape[1:]
    data = {"inputs": torch.zeros(batch, *shape, dtype=torch.uint8)}
    return {**data, "labels": torch.zeros(batch, dtype=torch.long)} if task.uses_labels else data


def build_wrapper(cfg, params) -> OptimWrapper:
    return OptimWrapper(optimizer=OPTIMIZERS.build({**cfg.optim_wrapper.optimizer, "params": params}))


def timed(operations: list[Operation], device: Device) -> list[Timed]:
    """Return the seconds of each operation, in order.

    A storage is read from the cache if, since its last use, fewer bytes were moved than the cache holds. A small fresh
    write stays in the cache.
    """
    touched: dict[int, float] = {}
    clock, done = 0.0, []
    for operation in operations:
        far = near = 0.0
        for memory, size in operation.read.items():
            cached = size < device.cache and clock - touched.get(memory, -math.inf) < device.cache
            near, far = (near + size, far) if cached else (near, far + size)
        for memory, size in operation.written.items():
            if size < device.cache / 2:
                near += size
            else:
                far += size * (1 if memory in operation.read else device.write_factor)
        clock += operation.bytes_moved
        touched.update(dict.fromkeys((*operation.read, *operation.written), clock))
        memory = far / device.bandwidth + near / device.cache_bandwidth
        if operation.name == "fused":
            memory *= device.fusion
        backward = "backward" in operation.name
        if operation.name.startswith("native_layer_norm") and device.norm:
            memory = max(memory, operation.bytes_moved / device.norm[backward])
        arithmetic = 0.0
        if operation.kind == "attention":
            arithmetic = operation.flops / device.attention_rate(operation.tokens, backward)
        elif operation.kind == "product":
            arithmetic = operation.flops / device.products
        # A CPU thread waits for its operands; a GPU fetches the next tiles during the arithmetic.
        both = arithmetic + memory if device.waits and operation.kind == "product" else max(arithmetic, memory)
        done.append(Timed(operation, arithmetic, memory, max(both, device.kernel_s)))
    return done


def predict(operations: list[Operation], device: Device, micro_batches: int = 1) -> Prediction:
    """Predict a step on one device; forward and backward pass run once per micro-batch."""
    new = peak_bytes(operations)
    operations = fused(operations) if device.compiled else operations
    by = dict.fromkeys(("products", "attention", "memory", "optimizer", "host"), 0.0)
    bounds = dict.fromkeys(("arithmetic", "memory", "host"), 0.0)
    kinds = {"product": "products", "attention": "attention", "memory": "memory"}
    for step in timed(operations, device):
        last = step.operation.phase == "optimizer"
        again = 1 if last else micro_batches
        by["optimizer" if last else kinds[step.operation.kind]] += again * step.device
        bounds["arithmetic" if step.arithmetic > step.memory else "memory"] += again * step.device
        by["host"] += again * device.operator_s
    bounds["host"] = by["host"]
    if device.first_touch:
        by["memory"] += new / device.first_touch
        bounds["memory"] += new / device.first_touch
    on_device = sum(by.values()) - by["host"]
    total = on_device + by["host"] if device.waits else max(on_device, by["host"])
    return Prediction(total, by, max(bounds, key=bounds.get), new)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [f"crate_{size}_in1k" for size in ("tiny", "small", "base", "large")]
    parser.add_argument("--configs", nargs="+", default=sizes, metavar="CONFIG", help="config names or files")
    devices = f"here (measured now), {', '.join(GIVEN)} (from data sheets, in bf16), or JSON files of devices.py"
    parser.add_argument("--devices", nargs="+", default=["here"], metavar="DEVICE", help=devices)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="default: float32")
    parser.add_argument("--gpus", type=positive_int, nargs="+", default=[1], help="number of GPUs (default: 1)")
    parser.add_argument("--batch", type=positive_int, help="global batch (default: the config's)")
    parser.add_argument(
        "--micro-batch", type=positive_int, default=512, help="maximum images per micro-batch (default: 512)"
    )
    parser.add_argument(
        "--images", type=positive_int, default=1_281_167, help="images per epoch (default: ImageNet-1K's)"
    )
    parser.add_argument(
        "--decode", type=float, help="images/s that one core decodes and crops (default: measured here)"
    )
    parser.add_argument("--cores", type=positive_int, default=16, help="cores per device for loading (default: 16)")
    parser.add_argument("--operators", action="store_true", help="list the operators of a step of the first config")
    parser.add_argument("--check", action="store_true", help="compare predictions with steps measured here")
    parser.add_argument("--batches", type=positive_int, nargs="+", default=[2, 8, 32], help="batch sizes of --check")
    parser.add_argument(
        "--img-sizes", type=positive_int, nargs="+", default=[32, 48, 80, 112], help="image sizes of --check"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=5, help="number of times that --check times a step (default: 5)"
    )
    parser.add_argument("--threads", type=positive_int, help="number of CPU threads (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON; rewritten after each row")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.check:
            device = device_of(args.devices[0], args.precision)
            about = {**vars(args), "device": asdict(device)}
            report("A training step, predicted and measured", check(device, args), about, args.json)
        elif args.operators:
            report(f"A training step of {args.configs[0]}, predicted", by_operator(args), vars(args), args.json)
        else:
            report("Predicted, not measured", predictions(args), vars(args), args.json)


def check(device: Device, args: argparse.Namespace) -> Iterator[dict]:
    """Yield rows of predicted and measured steps."""
    bf16 = args.precision == "bf16"
    for name in args.configs:
        for size in args.img_sizes:
            for batch in args.batches:
                overrides = {"model.backbone.img_size": size}
                predicted = predict(config_step(name, batch, bf16, **overrides), device)
                measured, waited = measure_step(name, batch, args.precision, args.rounds, overrides)
                yield {
                    "config": name,
                    "image": size,
                    "batch": batch,
                    "measured_ms": 1e3 * measured,
                    "predicted_ms": 1e3 * predicted.seconds,
                    "predicted_over_measured": predicted.seconds / measured,
                    "bound_by": predicted.bound,
                    "waited_percent": round(100 * waited),
                }


def measure_step(name: str, batch: int, precision: str, rounds: int, overrides: dict) -> tuple[float, float]:
    """Return the minimum seconds of a training step here, and the fraction spent waiting for a core."""
    torch.manual_seed(0)
    cfg, device = load_config(name, overrides), get_device()
    task = MODELS.build(cfg.model).to(device).train()
    leave_out_mixing(task)
    if device == "cuda":  # as the Runner does on a GPU, and as devices.py assumes
        compile_blocks(task)
    data, wrapper = batch_of(task, batch), build_wrapper(cfg, task.parameters())

    def losses() -> torch.Tensor:
        by_name = task(**task.data_preprocessor(data, True), mode="loss")
        return sum(value for key, value in by_name.items() if key.startswith("loss"))

    forward = in_precision(losses, precision, device)

    def step() -> None:
        wrapper.update_params(forward())

    step()
    return least_seconds(step, times=10 if device == "cuda" else 1, rounds=rounds)


def by_operator(args: argparse.Namespace) -> Iterator[dict]:
    """Yield rows of a step's operators by phase, the slowest first."""
    batch = args.batch or 16
    operations = config_step(args.configs[0], batch, args.precision == "bf16")
    for name in args.devices:
        device = device_of(name, args.precision)
        groups: dict[tuple[str, str], list[Timed]] = {}
        for step in timed(fused(operations) if device.compiled else operations, device):
            groups.setdefault((step.operation.phase, step.operation.name), []).append(step)
        for (phase, operator), steps in sorted(groups.items(), key=lambda item: -sum(s.device for s in item[1])):
            arithmetic, memory = sum(s.arithmetic for s in steps), sum(s.memory for s in steps)
            yield {
                "device": device.name,
                "phase": phase,
                "operator": operator.lstrip("_"),
                "times": len(steps),
                "gflop_an_image": sum(s.operation.flops for s in steps) / batch / 1e9 or None,
                "mb_an_image": sum(s.operation.bytes_moved for s in steps) / batch / 1e6,
                "us_an_image": 1e6 * sum(s.device for s in steps) / batch,
                "bound_by": "arithmetic" if arithmetic > memory else "memory",
            }


def predictions(args: argparse.Namespace) -> Iterator[dict]:
    """Yield rows of steps and epochs."""
    decode = args.decode or decode_rate()
    for name in args.devices:
        device = device_of(name, args.precision)
        for config in args.configs:
            for gpus in args.gpus:
                yield predict_run(config, device, gpus, decode, args)


def predict_run(config: str, device: Device, gpus: int, decode: float, args: argparse.Namespace) -> dict:
    cfg = load_config(config)
    batch = args.batch or cfg.global_batch_size
    plan = plan_batch(batch, gpus, args.micro_batch)
    operations = config_step(config, plan.micro_batch_size, args.precision == "bf16")
    step = predict(operations, device, plan.micro_batches)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
    phases = {phase: 0.0 for phase in ("forward", "backward", "optimizer")}
    for each in timed(operations, device):
        phases[each.operation.phase] += each.device
    last_backward = step.seconds * phases["backward"] / sum(phases.values()) / plan.micro_batches
    summing = unhidden_all_reduce(4 * parameters, gpus, last_backward)
    seconds = step.seconds + summing
    loading = plan.per_device / (decode * args.cores)  # seconds of a device's cores for its batch
    steps = args.images // plan.global_batch_size
    start = plan.per_device / decode  # one worker builds the first batch
    epoch = steps * max(seconds, loading) + start + CHECKPOINT_S
    image = 1e6 / plan.per_device
    bound = "all-reduce" if summing > step.seconds else step.bound
    if device.memory and step.bytes + 16 * parameters > device.memory:  # weights, gradients, momentum, update
        bound = "memory is too small"
    return {
        "config": config,
        "device": device.name,
        "gpus": gpus,
        "batch_a_gpu": f"{plan.micro_batches} x {plan.micro_batch_size}",
        "products_us": image * step.by["products"],
        "attention_us": image * step.by["attention"],
        "memory_us": image * step.by["memory"],
        "optimizer_us": image * step.by["optimizer"],
        "host_us": image * step.by["host"],
        "all_reduce_us": image * summing or None,
        "bound_by": bound,
        "activations_GB": step.bytes / 1e9,
        "images_per_s_a_gpu": plan.per_device / seconds,
        "epoch_s": epoch,
        "epoch_bound_by": "loading" if loading > seconds else "step",
    }


def unhidden_all_reduce(size: float, gpus: int, backward: float) -> float:
    """Return seconds of all-reduce that the backward pass does not hide: at least the last bucket's."""
    if gpus == 1:
        return 0.0

    def ring(part: float) -> float:
        link = NVLINK if gpus <= NODE else NETWORK
        return 2 * (gpus - 1) / gpus * part / link + 2 * math.log2(gpus) * HOP_S

    buckets = max(math.ceil(size / BUCKET), 1)
    last = ring(min(size, BUCKET))
    return max(last, buckets * last - backward * (1 - 1 / buckets))


def decode_rate(images: int = 64, rounds: int = 3) -> float:
    """Measure the images/s that one core here reads, decodes, crops and flips (photographs of 500 x 375)."""
    transforms = [dict(type="DecodeRandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")]
    with tempfile.TemporaryDirectory() as folder:
        dataset = ClassificationDataset(ImageNet(str(write_tree(Path(folder), images))), transforms)
        elapsed, _ = least_seconds(lambda: [dataset[index, index] for index in range(images)], rounds=rounds)
    return images / elapsed


if __name__ == "__main__":
    main()
