"""Measure how time and memory of a training step grow with tokens, batch size and processes.

python tools/benchmarks/scaling.py --json scaling.json
python tools/benchmarks/scaling.py --processes 1 2 4 8 16 --img-sizes 224 --batches 1 --precisions float32

Processes (on the CPU only, through gloo) share the cores. The results are steps per second, the memory of a process,
and the agreement: the time in which processes exchange their flags after a step, without overlap with computation.
"""

import argparse
import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from machine import (
    PRECISIONS,
    add_timing_options,
    in_precision,
    peak_memory_mb,
    report,
    saved_mb,
    time_in_turns,
)
from mmengine.device import get_device
from textbook import textbook_logits
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from crate_mm import get_model
from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.engine.safety.agreement import Agreement
from crate_mm.extras.bench import peak_bytes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="crate_tiny", help="one of crate_mm.list_models() (default: crate_tiny)")
    parser.add_argument(
        "--img-sizes", type=positive_int, nargs="+", default=[224, 448, 896], help="image sizes (default: 224 448 896)"
    )
    parser.add_argument("--batches", type=positive_int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--processes", type=positive_int, nargs="+", default=[1, 2])
    # A fork needs no imports, but hangs if this process has computed with several threads.
    parser.add_argument(
        "--start-method", choices=["spawn", "fork"], default="spawn", help="start method of the processes"
    )
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32", "bf16"])
    add_timing_options(parser, rounds=3)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        rows = (row for precision in args.precisions for row in measure_all(precision, args))
        report(f"training step of {args.model}", rows, vars(args), args.json)


def measure_all(precision: str, args: argparse.Namespace) -> Iterator[dict]:
    for size in args.img_sizes:
        for form in ("textbook", "plain"):
            yield measure("tokens", args, size, 1, form, precision)
    for batch in args.batches:
        yield measure("batch", args, 224, batch, "plain", precision)
    if get_device() == "cpu":
        for count in args.processes:
            yield on_processes(count, args, precision)


def measure(what: str, args: argparse.Namespace, img_size: int, batch: int, form: str, precision: str) -> dict:
    device = get_device()
    torch.manual_seed(0)
    model = get_model(args.model, img_size=img_size).to(device).train()
    images = torch.randn(batch, 3, img_size, img_size, device=device)
    plain = (lambda: textbook_logits(model, images)) if form == "textbook" else (lambda: model(images))
    forward = in_precision(plain, precision, device)
    step = training_step(forward, torch.zeros(batch, dtype=torch.long, device=device))
    seconds = statistics.median(time_in_turns({form: step}, args.rounds, args.steps)[form])
    return {
        "grows": what,
        "form": form,
        "precision": precision,
        "processes": 1,
        "tokens": 1 + (img_size // 16) ** 2,
        "batch": batch,
        "ms": 1e3 * seconds,
        "steps_s": 1 / seconds,
        "agreement_ms": None,
        "saved_MB": saved_mb(forward),
        "peak_MB": peak_memory_mb(step),
        "process_MB": None,  # the same process measures other rows, too
    }


def training_step(forward, labels: torch.Tensor):
    def step() -> None:
        F.cross_entropy(forward().float(), labels).backward()

    return step


def on_processes(count: int, args: argparse.Namespace, precision: str, batch: int = 4) -> dict:
    """Measure a step on each of ``count`` processes with averaged gradients, and the exchange of flags alone.

    The memory is the largest of the processes, libraries included.
    """
    results = torch.multiprocessing.get_context(args.start_method).SimpleQueue()
    start = {"nprocs": count, "start_method": args.start_method}
    torch.multiprocessing.start_processes(_process, (count, args, precision, batch, results), **start)
    step, agreement, saved, memory = results.get()
    return {
        "grows": "processes",
        "form": "plain",
        "precision": precision,
        "processes": count,
        "tokens": 197,
        "batch": batch * count,
        "ms": 1e3 * step,
        "steps_s": 1 / step,
        "agreement_ms": 1e3 * agreement,
        "saved_MB": saved,
        "peak_MB": None,
        "process_MB": memory,
    }


def _process(rank: int, count: int, args: argparse.Namespace, precision: str, batch: int, results) -> None:
    store = distributed.TCPStore("127.0.0.1", 29511 + count, count, rank == 0)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    model = get_model(args.model).train()
    images = torch.randn(batch, 3, 224, 224)
    parallel = DistributedDataParallel(model)
    forward = in_precision(lambda: parallel(images), precision, "cpu")
    step = training_step(forward, torch.zeros(batch, dtype=torch.long))
    agreement, flags = Agreement(), {"signal": 0, "failed": 0}

    def agree() -> None:
        agreement.begin(flags)
        agreement.end(flags)

    seconds = time_in_turns({"step": step, "agreement": agree}, args.rounds, args.steps)
    memory = [None] * count
    distributed.all_gather_object(memory, peak_bytes())
    if rank == 0:
        saved = saved_mb(in_precision(lambda: model(images), precision, "cpu"))
        medians = [statistics.median(seconds[name]) for name in ("step", "agreement")]
        results.put((*medians, saved, max(memory) / 1e6 if None not in memory else None))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
