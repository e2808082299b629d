"""Images a second of CRATE's inference and training step, against the textbook form with the same weights.

python tools/benchmarks/speed.py --arch tiny base --json speed.json

The forms take turns, round by round in one run, so that a busy machine is as bad for one as for the other; a figure is
the median over the rounds, a ratio the median of the rounds' ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from rich.console import Console
from rich.table import Table
from textbook import textbook_logits

from crate_mm import get_model
from crate_mm.engine.cli import check_writable, one_sentence_errors, positive
from crate_mm.models import ARCHS, ImageClassifier


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=list(ARCHS), default=["tiny", "base"])
    parser.add_argument("--batch", type=positive, default=16, help="images a batch (default: 16)")
    parser.add_argument("--img-size", type=positive, default=224, help="side of the images (default: 224)")
    parser.add_argument("--rounds", type=positive, default=5, help="how often each form is timed (default: 5)")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        check_writable(args.json)
        if args.threads:
            torch.set_num_threads(args.threads)
        device = get_device()
        rows = [row for arch in args.arch for row in measure(arch, args, device)]
        print_table(rows, args)
        if args.json:
            Path(args.json).write_text(json.dumps({**machine(device), **vars(args), "rows": rows}, indent=2) + "\n")


def measure(arch: str, args: argparse.Namespace, device: str) -> list[dict]:
    """Time every form of inference and of the training step of one size."""
    torch.manual_seed(0)
    model = get_model(f"crate_{arch}", img_size=args.img_size).to(device)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)
    steps = {
        "textbook": training_step(model, lambda x: textbook_logits(model, x), images, labels),
        "plain": training_step(model, model, images, labels),
    }
    rows = time_forms(steps, args, arch, "training step")
    model.eval()
    fused = get_model(f"crate_{arch}", img_size=args.img_size).to(device)
    fused.load_state_dict(model.state_dict())
    fused.backbone.fuse()
    forms = {"textbook": lambda: textbook_logits(model, images), "plain": lambda: model(images)}
    forms["fused"] = lambda: fused(images)
    with torch.inference_mode():
        expected = forms["textbook"]()
        for name, form in forms.items():
            torch.testing.assert_close(form(), expected, rtol=1e-4, atol=1e-4, msg=f"{name} computes something else")
        forms |= {f"{name}, bf16": autocast(form, device) for name, form in list(forms.items())}
        rows += time_forms(forms, args, arch, "inference")
    return rows


def training_step(
    model: ImageClassifier, forward: Callable, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], None]:
    """Forward, loss and backward, as all forms share the optimizer's part."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images), labels, label_smoothing=0.1).backward()

    return step


def autocast(form: Callable, device: str) -> Callable:
    def run() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return form()

    return run


def time_forms(forms: dict[str, Callable], args: argparse.Namespace, arch: str, what: str) -> list[dict]:
    """Time the forms in turns; the first is what the others are compared with."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()  # warm up
    for _ in range(args.rounds):
        for name, form in forms.items():
            synchronize()
            start = time.perf_counter()
            form()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    first = seconds[next(iter(forms))]
    return [
        {
            "arch": arch,
            "what": what,
            "form": name,
            "images_per_s": args.batch / statistics.median(taken),
            "ratio": statistics.median(a / b for a, b in zip(first, taken)),
        }
        for name, taken in seconds.items()
    ]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: str) -> dict:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def print_table(rows: list[dict], args: argparse.Namespace) -> None:
    table = Table(title=f"batch {args.batch}, {args.img_size} x {args.img_size}, float32 unless said otherwise")
    for column in ("CRATE", "", "form"):
        table.add_column(column)
    for column in ("images/s", "times the textbook form"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["arch"], row["what"], row["form"], f"{row['images_per_s']:.1f}", f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
