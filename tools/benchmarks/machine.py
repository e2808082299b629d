"""Shared parts of the benchmarks: description of the machine, timing of variants in turns, table and JSON."""

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path

import torch
import torchvision
from rich.console import Console
from rich.table import Table

import crate_mm
from crate_mm.cli.options import positive_int
from crate_mm.extras.bench import peak_bytes, reset_peak, seconds_of, synchronize
from crate_mm.io.files import write_json

# dtype, and PyTorch's float32 matmul precision, by name.
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),  # float32 on a GPU without TF32
    "bf16": (torch.bfloat16, "highest"),  # under autocast
}


def add_timing_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add ``--rounds``, ``--steps`` and ``--json``."""
    steps = 10 if torch.cuda.is_available() else 1
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=rounds,
        help=f"number of times that each variant is timed (default: {rounds})",
    )
    help = "runs in a row between two synchronizations (default: 10 on a GPU, to fill its queue; 1 on a CPU)"
    parser.add_argument("--steps", type=positive_int, default=steps, help=help)
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON; rewritten after each row")


def in_precision(form: Callable, precision: str, device: str) -> Callable:
    """Wrap a function so that it runs in one of ``PRECISIONS``, whatever the caller has set."""
    dtype, products = PRECISIONS[precision]

    def run():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(products)
        try:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                return form()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def describe_machine() -> dict:
    """Return hardware, versions and date, for the JSON."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "crate_mm": crate_mm.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return names[0].strip() if names else platform.processor() or platform.machine()


def time_in_turns(forms: dict[str, Callable[[], object]], rounds: int, steps: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each variant (form) in each round, after one warm-up; the variants take turns.

    Other jobs on the machine therefore affect all variants alike. In its turn, a variant runs ``steps`` times before
    the device is synchronized, because in training the host is ahead of a GPU. The seconds are per run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()
    for _ in range(rounds):
        for name, form in forms.items():
            seconds[name].append(seconds_of(form, steps))
    return seconds


def least_seconds(run: Callable[[], object], times: int = 1, rounds: int = 5) -> tuple[float, float]:
    """Return the minimum seconds of ``run``, over rounds of ``times`` runs, and the fraction spent waiting for a core.

    A round counts as disturbed if it waited more than 5 % of its time, because other processes had the cores. Disturbed
    rounds are repeated, up to ``2 * rounds`` in total; they are used only if all rounds are disturbed.
    """
    timings = []
    for _ in range(2 * rounds):
        start, used = time.perf_counter(), time.process_time()
        for _ in range(times):
            run()
        synchronize()
        elapsed, used = time.perf_counter() - start, time.process_time() - used
        waited = 0.0 if torch.cuda.is_available() else max(1 - used / elapsed, 0.0)
        timings.append((waited > 0.05, elapsed / times, waited))
        if sum(not disturbed for disturbed, _, _ in timings) == rounds:
            break
    _, seconds, waited = min(timings)
    return seconds, waited


def median_ratio(first: list[float], other: list[float]) -> float:
    """Return the speedup of ``other`` over ``first``: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(first, other))


def peak_memory_mb(form: Callable[[], object]) -> float | None:
    """Return the peak GPU memory of a function call, in MB, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    reset_peak()
    form()
    synchronize()
    return peak_bytes() / 1e6


def saved_mb(form: Callable[[], object]) -> float:
    """Return the memory that a function keeps for its backward pass, in MB; each storage counts once."""
    sizes = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        output = form()
    del output
    return sum(sizes.values()) / 1e6


@functools.cache
def matmul_rate(device: str, precision: str, size: int | None = None, rounds: int = 10) -> float:
    """Return the rate of the device's matrix product in one of ``PRECISIONS``, in multiply-adds per second.

    If a product of this size would take more than half a second, as in bf16 on a CPU without bf16 instructions, a
    smaller product is measured.
    """
    size = size or (8192 if device == "cuda" else 1536)
    small = min(size, 192)
    rate = _rate_at(small, device, precision, rounds=1)
    while size > small and size**3 / rate > 0.5:
        size //= 2
    return _rate_at(size, device, precision, rounds)


def _rate_at(size: int, device: str, precision: str, rounds: int) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=PRECISIONS[precision][0]) for _ in range(2))
    product = in_precision(lambda: a @ b, precision, device)
    seconds = time_in_turns({"product": product}, rounds, steps=10 if device == "cuda" else 1)["product"]
    return size**3 / statistics.median(seconds)


def report(title: str, rows: Iterable[dict], arguments: dict, path: str | None) -> None:
    """Print rows, which have equal keys, as a table, and write them as JSON with the machine and the arguments.

    The JSON is rewritten atomically after each row, so finished rows survive a later failure. The table has the rows
    measured so far.
    """
    measured, about = [], {**describe_machine(), "arguments": arguments}
    try:
        for row in rows:
            measured.append(row)
            if path:
                write_json(path, {**about, "rows": measured})
    finally:
        if measured:
            _print_table(title, measured)


def _print_table(title: str, rows: list[dict]) -> None:
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    width = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, 120, min(width, 240))).print(table)


def _shown(value) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
