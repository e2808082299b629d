"""Time and memory of CRATE's two steps, MSSA and ISTA, in each of their forms, against the textbook form.

python tools/benchmarks/layers.py --dim 384 768 --json layers.json

The rows with few tokens show where ISTA with two token-sized products is faster than with one.
"""

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from machine import PRECISIONS, add_timing_options, in_precision, median_ratio, peak_memory_mb, report, time_in_turns
from mmengine.device import get_device
from textbook import textbook_ista, textbook_mssa

from crate_mm.cli.options import check_writable, one_sentence_errors, positive
from crate_mm.models.layers import ISTA, MSSA


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=positive, nargs="+", default=[384, 768], help="of the tokens")
    parser.add_argument("--head-dim", type=positive, default=64, help="of each subspace (default: 64)")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 2, 4, 8, 16], help="images")
    parser.add_argument("--tokens", type=positive, default=197, help="of an image (default: 197)")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32", "bf16"])
    add_timing_options(parser, rounds=9)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        check_writable(args.json)
        rows = (
            row
            for dim in args.dim
            for batch in args.batch
            for precision in args.precisions
            for row in measure(dim, batch, precision, args)
        )
        report(f"{args.tokens} tokens an image, forward and backward", rows, vars(args), args.json)


def measure(dim: int, batch: int, precision: str, args: argparse.Namespace) -> Iterator[dict]:
    torch.manual_seed(0)
    device = get_device()
    x = torch.randn(batch, args.tokens, dim, device=device, requires_grad=True)
    mssa, ista = MSSA(dim, dim // args.head_dim).to(device), ISTA(dim).to(device)
    steps = {
        "MSSA": {"textbook": lambda: textbook_mssa(mssa, x), "crate_mm": lambda: mssa(x)},
        "ISTA": {
            "textbook": lambda: textbook_ista(ista, x),
            "crate_mm": lambda: ista(x),
            "one product": lambda: one_product(ista, x),
            "two products": lambda: two_products(ista, x),
        },
    }
    for step, plain in steps.items():
        forms = {name: in_precision(form, precision, device) for name, form in plain.items()}
        trained = {name: backward(form, [x, *mssa.parameters(), *ista.parameters()]) for name, form in forms.items()}
        seconds = time_in_turns(trained, args.rounds, args.steps)
        for name, taken in seconds.items():
            yield {
                "step": step,
                "dim": dim,
                "batch": batch,
                "form": name,
                "precision": precision,
                "ms": 1e3 * sorted(taken)[len(taken) // 2],
                "times_the_textbook": median_ratio(seconds["textbook"], taken),
                "saved_MB": saved_mb(forms[name]),
                "peak_MB": peak_memory_mb(trained[name]),
            }


def one_product(ista: ISTA, x: torch.Tensor) -> torch.Tensor:
    D = ista.dictionary
    return F.relu(x + F.linear(x, ista.step_size * (D - D.T @ D).T) - ista.step_size * ista.lambd)


def two_products(ista: ISTA, x: torch.Tensor) -> torch.Tensor:
    D = ista.dictionary
    return F.relu(x + F.linear(x - F.linear(x, D), ista.step_size * D.T) - ista.step_size * ista.lambd)


def backward(form, tensors: list[torch.Tensor]):
    def run() -> None:
        for tensor in tensors:
            tensor.grad = None
        form().sum().backward()

    return run


def saved_mb(form) -> float:
    """What a form keeps for its backward pass, in MB, each memory counted once."""
    sizes = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = form()
    del kept
    return sum(sizes.values()) / 1e6


if __name__ == "__main__":
    main()
