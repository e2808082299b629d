"""Time and memory of the family's operators, and of its layers as images grow.

    python tools/benchmarks/operators.py --json operators.json

First each operator (MSSA, softmax attention, TSSA; ISTA, CRATE-alpha's two steps of it, MLP; CRATE-MAE's decoder layer)
beside its equations written out (textbook.py), forward and backward, in float32 and under autocast to bf16. Then a
layer each of CRATE, ViT and ToST, of one width, without gradients, by the number of tokens: ToST's compression grows
with it, the others' with its square. The forms that are compared take turns in one run.
"""

import argparse
import statistics
from collections.abc import Iterator

import textbook
import torch
from layers import backward, saved_mb
from machine import PRECISIONS, add_timing_options, in_precision, median_ratio, peak_resident_mb, report, time_in_turns
from mmengine.device import get_device

from crate_mm.cli.options import check_writable, one_sentence_errors, positive
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import ISTA, MLP, MSSA, TSSA, DecoderBlock, OvercompleteISTA, SoftmaxAttention

# A layer of each family by its two steps. ViT's is a transformer's, of this package's parts.
LAYERS = {
    "CRATE": dict(compress=dict(type="MSSA"), sparsify=dict(type="ISTA")),
    "ViT": dict(compress=dict(type="SoftmaxAttention"), sparsify=dict(type="MLP"), residual=True),
    "CRATE-alpha": dict(
        compress=dict(type="MSSA", bias=False), sparsify=dict(type="OvercompleteISTA"), residual=True, norm_eps=1e-6
    ),
    "ToST": dict(compress=dict(type="TSSA"), sparsify=dict(type="MLP"), residual=True, norm_eps=1e-6, layer_scale=1.0),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=positive, default=384, help="of the tokens (default: 384)")
    parser.add_argument("--heads", type=positive, default=6, help="subspaces (default: 6)")
    parser.add_argument("--batch", type=positive, default=4, help="images, of the operators (default: 4)")
    parser.add_argument("--tokens", type=positive, default=197, help="of an image, of the operators (default: 197)")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32", "bf16"])
    parser.add_argument(
        "--lengths", type=positive, nargs="+", default=[197, 785, 3137, 12545], help="tokens of the layers, one image"
    )
    parser.add_argument("--length-rounds", type=positive, default=2, help="how often each layer is (default: 2)")
    add_timing_options(parser, rounds=7)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        check_writable(args.json)
        title = f"width {args.dim}; operators forward and backward, layers forward"
        report(title, measure(args), vars(args), args.json)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    for precision in args.precisions:
        yield from measure_operators(precision, args)
    for length in args.lengths:
        yield from measure_layers(length, args)


def operators(dim: int, heads: int) -> dict[str, tuple[torch.nn.Module, object]]:
    """Each operator by its name, and its equations as a function of the operator and its input."""
    return {
        "MSSA": (MSSA(dim, heads), textbook.textbook_mssa),
        "softmax attention": (SoftmaxAttention(dim, heads), textbook.textbook_softmax_attention),
        "TSSA": (TSSA(dim, heads), textbook.textbook_tssa),
        "ISTA": (ISTA(dim), textbook.textbook_ista),
        "overcomplete ISTA": (OvercompleteISTA(dim), textbook.textbook_overcomplete_ista),
        "MLP": (MLP(dim), textbook.textbook_mlp),
        "decoder layer": (DecoderBlock(dim, MSSA(dim, heads)), textbook.textbook_decoder_block),
    }


def measure_operators(precision: str, args: argparse.Namespace) -> Iterator[dict]:
    torch.manual_seed(0)
    device = get_device()
    x = torch.randn(args.batch, args.tokens, args.dim, device=device, requires_grad=True)
    for name, (operator, equations) in operators(args.dim, args.heads).items():
        operator.to(device)
        forms = {
            "equations": in_precision(lambda o=operator, e=equations: e(o, x), precision, device),
            "crate_mm": in_precision(lambda o=operator: o(x), precision, device),
        }
        trained = {form: backward(run, [x, *operator.parameters()]) for form, run in forms.items()}
        seconds = time_in_turns(trained, args.rounds, args.steps)
        for form, taken in seconds.items():
            memory = saved_mb(forms[form]), peak_resident_mb(trained[form])
            yield row(name, form, precision, args.tokens, taken, seconds["equations"], *memory)


def measure_layers(length: int, args: argparse.Namespace) -> Iterator[dict]:
    torch.manual_seed(0)
    device = get_device()
    x = torch.randn(1, length, args.dim, device=device)
    built = {name: build_block(args.dim, args.heads, **parts).to(device).eval() for name, parts in LAYERS.items()}

    def without_gradients(layer):
        def run():
            with torch.inference_mode():
                return layer(x)

        return run

    forms = {name: without_gradients(layer) for name, layer in built.items()}
    seconds = time_in_turns(forms, args.length_rounds, args.steps)
    for name, taken in seconds.items():
        yield row("layer", name, "float32", length, taken, seconds["CRATE"], None, peak_resident_mb(forms[name]))


def row(name, form, precision, tokens, taken, first, saved, peak) -> dict:
    """A row; the first form's time over this one's is above 1 where this one is faster."""
    return {
        "operator": name,
        "form": form,
        "precision": precision,
        "tokens": tokens,
        "ms": 1e3 * statistics.median(taken),
        "times_the_first": median_ratio(first, taken),
        "saved_MB": saved,
        "peak_MB": peak,
    }


if __name__ == "__main__":
    main()
