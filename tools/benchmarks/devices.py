"""What a device reaches: given for GPUs that are not there, measured for the one that is.

python tools/benchmarks/devices.py --precision float32 --json device.json

roofline.py predicts steps from these rates. None of them is measured on a training step.
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

from crate_mm.cli.options import check_writable, one_sentence_errors, positive

BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@dataclass(frozen=True)
class Device:
    """The rates of a device in one precision; FLOP count two for each multiply-add.

    Args:
        name: for people.
        products: FLOP/s of a matrix product.
        attention: FLOP/s forward and backward by the number of tokens, for the fused operator.
        bandwidth: bytes/s to and from the memory.
        cache, cache_bandwidth: bytes that are found again if they were touched within as many, and bytes/s there.
        operator_s: seconds that the host spends on an operator.
        write_factor: how often a fresh write counts; 2 where the line is read first, as on CPUs.
        norm: bytes/s of LayerNorm forward and backward, where it is slower than the memory.
        first_touch: bytes/s of memory that the system hands out anew in each step; None where it is kept.
        waits: whether the host waits for each operator, as on a CPU; else it is ahead, and the longer of both counts.
        kernel_s: the shortest time of an operator on the device.
        compiled: whether what stands between two products is one operator.
        fusion: how much more those operators move than they would have to.
        memory: bytes, where there is a limit that counts.
        note: where the numbers come from.
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
        """FLOP/s, between the measured numbers of tokens by interpolation, both in the logarithm."""
        points = sorted(self.attention)
        low = max((point for point in points if point[0] <= tokens), default=points[0])
        high = min((point for point in points if point[0] >= tokens), default=points[-1])
        a, b = low[1 + backward], high[1 + backward]
        share = 0.0 if low[0] == high[0] else math.log(tokens / low[0]) / math.log(high[0] / low[0])
        return a ** (1 - share) * b**share


def _gpu(name: str, peak: float, bandwidth: float, attention: tuple[float, float], cache: float, memory: int) -> Device:
    """A GPU by its data sheet: of its peak in bf16 55 % in our products, of its bandwidth 90 %."""
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


# What the compiler's kernels move beyond ideal fusion was counted in the code that it writes for an H100: a fifth.
# bf16; peaks without sparsity and bandwidths from NVIDIA's data sheets. The attention's are what is assumed of
# FlashAttention-2 at 197 tokens and heads of 64: two tiles of 128, of which 59 % of the work is padding's or lost.
GIVEN = {
    "a100-40gb": _gpu("A100 40GB", 312e12, 1.555e12, (90e12, 60e12), 40e6, 40),
    "h100": _gpu("H100 SXM", 989e12, 3.35e12, (180e12, 120e12), 50e6, 80),
    "h200": _gpu("H200 SXM", 989e12, 4.8e12, (180e12, 120e12), 50e6, 141),
}


def device_of(name: str, precision: str) -> Device:
    """The device 'here', measured now; one of ``GIVEN``; or that of a JSON of this script, measured before.

    Raises:
        ValueError: there is no such device, or it is known in another precision.
    """
    if name == "here":
        return measure(precision)
    if name in GIVEN:
        if precision != "bf16":
            raise ValueError(f"{name} is given in bf16 alone, not in {precision}: --precision bf16")
        return GIVEN[name]
    if not Path(name).is_file():
        raise ValueError(f"there is no device {name!r}: choose here, {', '.join(GIVEN)} or a JSON of devices.py")
    written = json.loads(Path(name).read_text())["arguments"]
    if written["precision"] != precision:
        raise ValueError(f"{name} was measured in {written['precision']}, not in {precision}: --precision")
    return Device(**written["device"])


def seconds(run: Callable[[], object], enough: float = 0.1, rounds: int = 5) -> float:
    """The least time of ``run`` over rounds of many times in a row, which take about ``enough`` seconds together."""
    run()
    times = 1
    while (taken := times * least_seconds(run, times, rounds=1)[0]) < enough / 20:
        times = math.ceil(times * min(max(enough / 5 / taken, 2), 100))
    return least_seconds(run, math.ceil(times * enough / 5 / taken), rounds)[0]


def measure(precision: str) -> Device:
    """The device that is there."""
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
    """FLOP/s of the fused attention with equal queries, keys and values, as MSSA has it, forward and backward."""
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
    """The bytes within which memory is found again, and bytes/s there: the border is at a fifth less than the best."""
    sizes = [2**power for power in (range(20, 29) if device == "cuda" else range(17, 24))]
    rates = {}
    for size in sizes:
        a, b = (torch.randn(size // 12, device=device) for _ in range(2))
        out = torch.empty_like(a)
        rates[size] = 3 * a.nbytes / seconds(lambda a=a, b=b, out=out: torch.add(a, b, out=out), 0.05)
    best = max(rates.values())
    return float(max(size for size, rate in rates.items() if rate > 0.8 * best)), best


def _memory(device: str) -> tuple[float, float]:
    """Bytes/s beyond the cache, and how often a fresh write counts: in place nothing is written afresh."""
    count, size = (8, 2**26) if device == "cuda" else (48, 2**19)  # large enough to hide a GPU's launches
    a, b = ([torch.randn(size, device=device) for _ in range(count)] for _ in range(2))
    moved = sum(tensor.nbytes for tensor in a)
    # An addition in place moves three, a copy two, of which one is a fresh write.
    in_place = 3 * moved / seconds(lambda: [x.add_(y, alpha=0.0) for x, y in zip(a, b)])
    copied = 2 * moved / seconds(lambda: [x.copy_(y) for x, y in zip(a, b)])
    return in_place, max(2 * in_place / copied - 1, 1.0)


def _first_touch() -> float:
    """Bytes/s of the system's handing out of memory: what filling new memory takes longer than filling it again."""
    first, again = [], []
    for _ in range(9):
        tensor = torch.empty(2**26, dtype=torch.uint8)  # more than what PyTorch's allocator keeps
        start = time.perf_counter()
        tensor.fill_(1)
        middle = time.perf_counter()
        tensor.fill_(2)
        first.append(middle - start)
        again.append(time.perf_counter() - middle)
        del tensor
    return 2**26 / max(min(first) - min(again), 1e-6)


def _norm(device: str) -> tuple[float, float]:
    """Bytes/s of LayerNorm, forward and backward."""
    x = torch.randn(20_000 if device == "cuda" else 400, 768, device=device, requires_grad=True)
    weight, bias = (torch.ones(768, device=device, requires_grad=True) for _ in range(2))
    out = F.layer_norm(x, (768,), weight, bias)
    gradient = torch.randn_like(x)
    with torch.no_grad():
        there = seconds(lambda: F.layer_norm(x, (768,), weight, bias), 0.05)
    back = seconds(lambda: torch.autograd.grad(out, (x, weight, bias), gradient, retain_graph=True), 0.05)
    return 2 * x.nbytes / there, 3 * x.nbytes / back


def _operator(device: str) -> float:
    """Seconds of the host for an operator of a few numbers, with the module that calls it, forward and backward."""
    chain = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(100))).to(device)
    x = torch.ones(2, 3, 4, device=device)

    def run() -> None:
        chain.zero_grad()
        chain(x).sum().backward()

    return seconds(run, 0.05) / 400  # a product forward; two and a sum backward


def measure_rows(found: Device, precision: str) -> Iterator[dict]:
    """The device's rates as rows, and products and attention of the models' own shapes."""
    device, gpu = get_device(), torch.cuda.is_available()

    def row(what: str, rate: float, unit: str, scale: float = 1e-9) -> dict:
        return {"what": what, "precision": precision, "value": rate * scale, "unit": unit}

    yield row("product of large matrices", found.products, "GFLOP/s")
    yield row("memory", found.bandwidth, "GB/s")
    yield row("a fresh write counts", found.write_factor, "times", 1.0)
    yield row("cache", found.cache, "MB", 1e-6)
    yield row("cache's memory", found.cache_bandwidth, "GB/s")
    if found.first_touch:
        yield row("memory that the system hands out", found.first_touch, "GB/s")
    yield row("LayerNorm, forward", found.norm[0], "GB/s")
    yield row("LayerNorm, backward", found.norm[1], "GB/s")
    yield row("an operator of the host", found.operator_s, "us", 1e6)
    rows, dtype = (50_432 if gpu else 394), PRECISIONS[precision][0]
    for dim in (384, 576, 768, 1024):
        x, w = torch.randn(rows, dim, device=device, dtype=dtype), torch.randn(dim, dim, device=device, dtype=dtype)
        forms = {"x W^T": lambda x=x, w=w: F.linear(x, w), "x W": lambda x=x, w=w: x @ w, "x^T x": lambda x=x: x.T @ x}
        for form, run in forms.items():
            taken = seconds(in_precision(run, precision, device), 0.05, 3)
            yield row(f"{form}, {rows} x {dim}", 2 * rows * dim**2 / taken, "GFLOP/s")
    for heads, dim in ((6, 64), (12, 48), (12, 64), (16, 64)):
        for way, rate in zip(("forward", "backward"), attention_rates(197, heads, dim, device, precision)):
            yield row(f"attention, {heads} heads of {dim}, {way}", rate, "GFLOP/s")
        for backend in BACKENDS if gpu else ():
            with suppress(RuntimeError), sdpa_kernel([backend]):  # one that does not take the shape says so
                rates = attention_rates(197, heads, dim, device, precision)
                for way, rate in zip(("forward", "backward"), rates):
                    yield row(f"attention, {heads} heads of {dim}, {way}, {backend.name}", rate, "GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="default: float32")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON that is whole after each row")
    args = parser.parse_args()
    with one_sentence_errors():
        check_writable(args.json)
        if args.threads:
            torch.set_num_threads(args.threads)
        device = measure(args.precision)
        about = {**vars(args), "device": asdict(device)}
        report("What this device reaches", measure_rows(device, args.precision), about, args.json)


if __name__ == "__main__":
    main()
