"""The rates of a device: measured on this machine, or derived from the data sheets of other GPUs.

python tools/benchmarks/devices.py --precision float32 --json device.json

roofline.py predicts steps from these rates. No rate is measured on a training step.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import PRECISIONS, cpu_name, in_precision, least_seconds, report
from mmengine.device import get_device
from torch.nn.attention import SDPBackend, sdpa_kernel

from crate_mm.cli.options import check_writable, positive_int, user_errors

BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@dataclass(frozen=True)
class Device:
    """The rates of a device in one precision; a multiply-add counts as two FLOPs.

    Args:
        name: display name.
        products: FLOP/s of a matrix product.
        attention: (number of tokens, FLOP/s forward, FLOP/s backward) of the fused operator.
        bandwidth: bytes/s to and from memory.
        cache, cache_bandwidth: size in bytes, and bytes/s of the cache.
        operator_s: seconds of host time per operator.
        write_factor: traffic per byte written to memory that the operator has not read; 2 on CPUs, which first read it.
        norm: bytes/s of LayerNorm forward and backward, if it is slower than memory.
        first_touch: bytes/s of memory that the system newly allocates in each step; None if memory is reused.
        waits: whether the host waits for each operator, as on a CPU; otherwise the longer of their two times counts.
        kernel_s: shortest time of an operator on the device, in seconds.
        compiled: whether a compiler fuses all operators between two products into one.
        fusion: bytes that a fused operator moves, as a multiple of the minimum.
        memory: capacity in bytes, or None for no limit.
        note: source of the numbers.
    """

    name: str
    products: float
    attention: tuple[tuple[int, float, float], ...]
    bandwidth: float
    cache: float
    cache_bandwidth: float
    operator_s: float
    write_factor: float = 1.0
    norm: tuple[float, float] | None = None
    first_touch: float | None = None
    waits: bool = False
    kernel_s: float = 0.0
    compiled: bool = False
    fusion: float = 1.0
    memory: float | None = None
    note: str = "measured"

    def attention_rate(self, tokens: int, backward: bool) -> float:
        """Return FLOP/s, interpolated between the measured numbers of tokens on a log-log scale."""
        points = sorted(self.attention)
        low = max((point for point in points if point[0] <= tokens), default=points[0])
        high = min((point for point in points if point[0] >= tokens), default=points[-1])
        a, b = low[1 + backward], high[1 + backward]
        weight = 0.0 if low[0] == high[0] else math.log(tokens / low[0]) / math.log(high[0] / low[0])
        return a ** (1 - weight) * b**weight


def _gpu(name: str, peak: float, bandwidth: float, attention: tuple[float, float], cache: float, memory: int) -> Device:
    """Return a GPU from its data sheet: products reach 55 % of the bf16 peak, memory 90 % of the bandwidth."""
    return Device(
        name=name,
        products=0.55 * peak,
        attention=((197, *attention),),
        bandwidth=0.9 * bandwidth,
        cache=cache / 2,
        cache_bandwidth=2 * bandwidth,
        operator_s=6e-6,
        kernel_s=2e-6,
        compiled=True,
        fusion=1.2,
        memory=memory * 1e9,
        note="given, not measured",
    )


# bf16; peaks without sparsity and bandwidths are from NVIDIA's data sheets. The compiler's kernels move a fifth more
# than with ideal fusion (counted in its generated code for an H100). Attention rates are assumptions for
# FlashAttention-2 at 197 tokens and heads of 64: two tiles of 128, where 59 % of the work is padding or lost.
GIVEN = {
    "a100-40gb": _gpu("A100 40GB", 312e12, 1.555e12, (90e12, 60e12), 40e6, 40),
    "h100": _gpu("H100 SXM", 989e12, 3.35e12, (180e12, 120e12), 50e6, 80),
    "h200": _gpu("H200 SXM", 989e12, 4.8e12, (180e12, 120e12), 50e6, 141),
}


def device_of(name: str, precision: str) -> Device:
    """Return a device: 'here' (measured now), a name in ``GIVEN``, or a JSON file of this script.

    Raises:
        ValueError: the device is unknown, or known in another precision only.
    """
    if name == "here":
        return measure(precision)
    if name in GIVEN:
        if precision != "bf16":
            raise ValueError(f"{name} is given in bf16 only, not in {precision}: --precision bf16")
        return GIVEN[name]
    if not Path(name).is_file():
        raise ValueError(f"there is no device {name!r}: choose here, {', '.join(GIVEN)} or a JSON of devices.py")
    written = json.loads(Path(name).read_text())["arguments"]
    if written["precision"] != precision:
        raise ValueError(f"{name} was measured in {written['precision']}, not in {precision}: --precision")
    return Device(**written["device"])


def seconds(run: Callable[[], object], enough: float = 0.1, rounds: int = 5) -> float:
    """Return the minimum time of ``run`` over rounds of many runs in a row, about ``enough`` seconds in total."""
    run()
    times = 1
    while (elapsed := times * least_seconds(run, times, rounds=1)[0]) < enough / 20:
        times = math.ceil(times * min(max(enough / 5 / elapsed, 2), 100))
    return least_seconds(run, math.ceil(times * enough / 5 / elapsed), rounds)[0]


def measure(precision: str) -> Device:
    """Measure the device of this machine."""
    device = get_device()
    cache, cache_bandwidth = _cache(device)
    bandwidth, write_factor = _memory(device)
    gpu = device == "cuda"
    return Device(
        name=torch.cuda.get_device_name() if gpu else cpu_name(),
        products=_products(device, precision),
        attention=tuple((n, *attention_rates(n, 6, 64, device, precision)) for n in (5, 17, 50, 197)),
        bandwidth=bandwidth,
        cache=cache,
        cache_bandwidth=cache_bandwidth,
        operator_s=_operator(device),
        write_factor=write_factor,
        norm=_norm(device),
        first_touch=None if gpu else _first_touch(),
        waits=not gpu,
        kernel_s=2e-6 if gpu else 0.0,
        compiled=gpu,
        fusion=1.2 if gpu else 1.0,
        memory=torch.cuda.get_device_properties(0).total_memory if gpu else None,
    )


def _products(device: str, precision: str) -> float:
    size = 8192 if device == "cuda" else 768
    a, b = (torch.randn(size, size, device=device, dtype=PRECISIONS[precision][0]) for _ in range(2))
    return 2 * size**3 / seconds(in_precision(lambda: a @ b, precision, device))


def attention_rates(tokens: int, heads: int, dim: int, device: str, precision: str) -> tuple[float, float]:
    """Return FLOP/s of fused attention with equal queries, keys and values, as in MSSA, forward and backward."""
    batch = 256 if device == "cuda" else 8
    w = torch.randn(batch, tokens, heads * dim, device=device, dtype=PRECISIONS[precision][0], requires_grad=True)

    def forward() -> torch.Tensor:
        v = w.view(batch, tokens, heads, dim).transpose(1, 2)
        return F.scaled_dot_product_attention(v, v, v)

    out = forward()
    gradient = torch.randn(batch, tokens, heads, dim, device=device, dtype=w.dtype).transpose(1, 2)
    work = 4 * batch * heads * tokens**2 * dim
    with torch.no_grad():
        there = seconds(forward)
    back = seconds(lambda: torch.autograd.grad(out, w, gradient, retain_graph=True))
    return work / there, 2.5 * work / back


def _cache(device: str) -> tuple[float, float]:
    """Return the cache size in bytes and its bytes/s; the cache ends where the rate is a fifth below the best."""
    sizes = [2**power for power in (range(20, 29) if device == "cuda" else range(17, 24))]
    rates = {}
    for size in sizes:
        a, b = (torch.randn(size // 12, device=device) for _ in range(2))
        out = torch.empty_like(a)
        rates[size] = 3 * a.nbytes / seconds(lambda a=a, b=b, out=out: torch.add(a, b, out=out), 0.05)
    best = max(rates.values())
    return float(max(size for size, rate in rates.items() if rate > 0.8 * best)), best


def _memory(device: str) -> tuple[float, float]:
    """Return bytes/s beyond the cache, and ``write_factor`` (an in-place operator has no fresh write)."""
    count, size = (8, 2**26) if device == "cuda" else (48, 2**19)  # large enough to hide a GPU's launches
    a, b = ([torch.randn(size, device=device) for _ in range(count)] for _ in range(2))
    moved = sum(tensor.nbytes for tensor in a)
    # An in-place addition moves three tensors, a copy two, one of which is a fresh write.
    in_place = 3 * moved / seconds(lambda: [x.add_(y, alpha=0.0) for x, y in zip(a, b)])
    copied = 2 * moved / seconds(lambda: [x.copy_(y) for x, y in zip(a, b)])
    return in_place, max(2 * in_place / copied - 1, 1.0)


def _first_touch() -> float:
    """Return bytes/s of newly allocated memory: the extra time of filling it for the first time."""
    first, again = [], []
    for _ in range(9):
        tensor = torch.empty(2**26, dtype=torch.uint8)  # more than PyTorch's allocator reuses
        start = time.perf_counter()
        tensor.fill_(1)
        middle = time.perf_counter()
        tensor.fill_(2)
        first.append(middle - start)
        again.append(time.perf_counter() - middle)
        del tensor
    return 2**26 / max(min(first) - min(again), 1e-6)


def _norm(device: str) -> tuple[float, float]:
    """Return bytes/s of LayerNorm, forward and backward."""
    x = torch.randn(20_000 if device == "cuda" else 400, 768, device=device, requires_grad=True)
    weight, bias = (torch.ones(768, device=device, requires_grad=True) for _ in range(2))
    out = F.layer_norm(x, (768,), weight, bias)
    gradient = torch.randn_like(x)
    with torch.no_grad():
        there = seconds(lambda: F.layer_norm(x, (768,), weight, bias), 0.05)
    back = seconds(lambda: torch.autograd.grad(out, (x, weight, bias), gradient, retain_graph=True), 0.05)
    return 2 * x.nbytes / there, 3 * x.nbytes / back


def _operator(device: str) -> float:
    """Return seconds of host time per tiny operator, module call included, forward and backward."""
    chain = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(100))).to(device)
    x = torch.ones(2, 3, 4, device=device)

    def run() -> None:
        chain.zero_grad()
        chain(x).sum().backward()

    return seconds(run, 0.05) / 400  # per layer, one product forward; two products and a sum backward


def measure_rows(rates: Device, precision: str) -> Iterator[dict]:
    """Yield rows: the device's rates, then rates of products and attention in the models' shapes."""
    device, gpu = get_device(), torch.cuda.is_available()

    def row(what: str, rate: float, unit: str, scale: float = 1e-9) -> dict:
        return {"what": what, "precision": precision, "value": rate * scale, "unit": unit}

    yield row("product of large matrices", rates.products, "GFLOP/s")
    yield row("memory", rates.bandwidth, "GB/s")
    yield row("a fresh write counts", rates.write_factor, "times", 1.0)
    yield row("cache", rates.cache, "MB", 1e-6)
    yield row("cache's memory", rates.cache_bandwidth, "GB/s")
    if rates.first_touch:
        yield row("memory that the system hands out", rates.first_touch, "GB/s")
    yield row("LayerNorm, forward", rates.norm[0], "GB/s")
    yield row("LayerNorm, backward", rates.norm[1], "GB/s")
    yield row("an operator of the host", rates.operator_s, "us", 1e6)
    rows, dtype = (50_432 if gpu else 394), PRECISIONS[precision][0]
    for dim in (384, 576, 768, 1024):
        x, w = torch.randn(rows, dim, device=device, dtype=dtype), torch.randn(dim, dim, device=device, dtype=dtype)
        forms = {"x W^T": lambda x=x, w=w: F.linear(x, w), "x W": lambda x=x, w=w: x @ w, "x^T x": lambda x=x: x.T @ x}
        for form, run in forms.items():
            elapsed = seconds(in_precision(run, precision, device), 0.05, 3)
            yield row(f"{form}, {rows} x {dim}", 2 * rows * dim**2 / elapsed, "GFLOP/s")
    for heads, dim in ((6, 64), (12, 48), (12, 64), (16, 64)):
        for way, rate in zip(("forward", "backward"), attention_rates(197, heads, dim, device, precision)):
            yield row(f"attention, {heads} heads of {dim}, {way}", rate, "GFLOP/s")
        for backend in BACKENDS if gpu else ():
            with suppress(RuntimeError), sdpa_kernel([backend]):  # raised by a back end that does not support the shape
                of_backend = attention_rates(197, heads, dim, device, precision)
                for way, rate in zip(("forward", "backward"), of_backend):
                    yield row(f"attention, {heads} heads of {dim}, {way}, {backend.name}", rate, "GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="default: float32")
    parser.add_argument("--threads", type=positive_int, help="number of CPU threads (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON; rewritten after each row")
    args = parser.parse_args()
    with user_errors():
        check_writable(args.json)
        if args.threads:
            torch.set_num_threads(args.threads)
        device = measure(args.precision)
        about = {**vars(args), "device": asdict(device)}
        report("Rates of this device", measure_rows(device, args.precision), about, args.json)


if __name__ == "__main__":
    main()
