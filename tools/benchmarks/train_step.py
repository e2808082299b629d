"""Measure images per second of a training step (forward, loss, backward, Lion): textbook, plain and compiled form.

python tools/benchmarks/train_step.py --json train_step.json
python tools/benchmarks/train_step.py --models crate_tiny crate_small crate_base crate_large vit_small --batch 256

The forms take turns in one run, with several steps per turn; a ratio is the median over the rounds. ``first step s``
includes compilation. A model's rows are written before the next model is measured.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from forms import build, first_seconds, is_crate, measure_forms, parse_args
from machine import in_precision, report
from mmengine.device import get_device
from textbook import textbook_logits

from crate_mm.cli.options import check_writable, user_errors
from crate_mm.engine.optim.wrapper import Lion, OptimWrapper
from crate_mm.engine.parallel.blocks import compile_blocks


def main() -> None:
    args = parse_args(__doc__)
    with user_errors():
        check_writable(args.json)
        rows = (row for name in args.models for row in measure(name, args, get_device()))
        report(f"training step, batch {args.batch}, {args.img_size} x {args.img_size}", rows, vars(args), args.json)


def measure(name: str, args, device: str) -> Iterator[dict]:
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)
    forms: dict[tuple[str, str], Callable] = {}
    for precision in args.precisions:
        model = build(name, args, device)
        if is_crate(model):
            forms["textbook", precision] = step(model, lambda x, m=model: textbook_logits(m, x), images, labels)
        model = build(name, args, device)
        forms["plain", precision] = step(model, model, images, labels)
        if args.compile:
            model = build(name, args, device)
            compile_blocks(model)
            forms["compiled", precision] = step(model, model, images, labels)
    forms = {key: in_precision(run, key[1], device) for key, run in forms.items()}
    cold = first_seconds(forms)
    for row in measure_forms(name, {key: forms[key] for key in cold}, 3, args, device):
        yield {**row, "first_step_s": cold[row["form"], row["precision"]]}


def step(model: torch.nn.Module, forward: Callable, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    wrapper = OptimWrapper(optimizer=Lion(model.train().parameters(), lr=1e-5, weight_decay=0.5))

    def run() -> None:
        wrapper.update_params(F.cross_entropy(forward(images), labels, label_smoothing=0.1))

    return run


if __name__ == "__main__":
    main()
