"""Measure images per second of inference: textbook, plain, fused and compiled form.

python tools/benchmarks/inference.py --json inference.json

The forms take turns in one run, with several batches per turn; a ratio is the median over the rounds. A model's rows
are written before the next model is measured.
"""

from collections.abc import Callable, Iterator

import torch
from forms import build, first_seconds, is_crate, measure_forms, parse_args
from machine import in_precision, report
from mmengine.device import get_device
from textbook import textbook_logits

from crate_mm.cli.options import check_writable, user_errors
from crate_mm.engine.parallel.blocks import compile_blocks


def main() -> None:
    args = parse_args(__doc__)
    with user_errors(), torch.inference_mode():
        check_writable(args.json)
        rows = (row for name in args.models for row in measure(name, args, get_device()))
        report(f"inference, batch {args.batch}, {args.img_size} x {args.img_size}", rows, vars(args), args.json)


def measure(name: str, args, device: str) -> Iterator[dict]:
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=device)
    plain = build(name, args, device)
    models: dict[str, Callable] = {"plain": plain}
    if is_crate(plain):
        models = {"textbook": lambda x: textbook_logits(plain, x), **models}
        models["fused"] = build(name, args, device)
        models["fused"].backbone.fuse()
    if args.compile:
        models["compiled"] = build(name, args, device)
        if is_crate(plain):
            models["compiled"].backbone.fuse()
        compile_blocks(models["compiled"])
    in_full = {form: in_precision(lambda m=model: m(images), "float32", device) for form, model in models.items()}
    expected = in_full["plain"]()
    for form, run in in_full.items():
        torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4, msg=f"{form} form gives other logits")
    forms = {
        (form, precision): in_precision(lambda m=model: m(images), precision, device)
        for precision in args.precisions
        for form, model in models.items()
    }
    yield from measure_forms(name, {key: forms[key] for key in first_seconds(forms)}, 1, args, device)


if __name__ == "__main__":
    main()
