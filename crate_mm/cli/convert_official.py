"""Convert a third-party checkpoint (CRATE, CRATE-MAE, CRATE-alpha, ToST, CBT, ViT, ...) to crate_mm's format.

python tools/convert_official.py crate_base_official.pth crate_base.pth
python tools/test.py configs/crate_base_in1k.py crate_base.pth

Unless the file matches a published model, give the model arguments that its tensor shapes do not determine, such as
--num-heads 6 or --given ista_lambda=0.5. All assumptions are printed and stored in OUT.
"""

import argparse
from pathlib import Path

from ..checkpoints import CheckpointError, open_checkpoint, write_checkpoint
from ..checkpoints.validate import FORMAT
from ..config.kinds import parse_value
from ..io.untrusted import say
from ..models.layers import to_pair
from .options import KeyValues, Parser, add_shared, check_output, positive_int, user_errors

UNKNOWN = (
    "is not a checkpoint of the official CRATE code or another supported code base: expected keys as in CRATE "
    "(pos_embedding, transformer.layers), ToST (pos_embeder) or torchvision's ViT (conv_proj, heads.head)"
)
HEADS = "number of attention heads, if neither the file nor a published model of this size determines it"


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("input", metavar="IN", help="third-party checkpoint")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--num-heads", type=positive_int, help=HEADS)
    parser.add_argument(
        "--given",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="other model arguments that the file does not determine, such as img_size, ista_step_size, ista_lambda",
    )
    add_shared(parser, "--force")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        output = Path(args.output)
        check_output(args.output, force=args.force)
        model_args = {name: parse_value(str(text)) for name, text in (args.given or {}).items()}
        checkpoint = open_checkpoint(args.input, **{"num_heads": args.num_heads, **model_args})
        if "translated_from" not in checkpoint.meta:
            raise CheckpointError(
                f"{args.input} {UNKNOWN}"
                if not checkpoint.unknown_reason
                else f"{args.input}: {checkpoint.unknown_reason}"
            )
        if checkpoint.model is None:
            names = checkpoint.missing
            options = ("--num-heads K" if name == "num_heads" else f"--given {name}=VALUE" for name in names)
            raise CheckpointError(f"{args.input}: {checkpoint.unknown_reason} ({' '.join(options)})")
        checkpoint.log_notes(say)
        meta = {
            "format": FORMAT,
            "model": checkpoint.model,
            **{key: checkpoint.meta[key] for key in ("translated_from", "assumed")},
        }
        write_checkpoint({"meta": meta, "state_dict": checkpoint.weights}, output)
    backbone = checkpoint.model["backbone"]
    size = " x ".join(map(str, to_pair(backbone["img_size"])))
    classes = (checkpoint.model.get("head") or {}).get("num_classes")
    say(
        f"wrote {output}: {backbone['type']} {backbone.get('arch', '')}, {len(checkpoint.weights)} tensors, "
        f"{sum(value.numel() for value in checkpoint.weights.values()):,} parameters, "
        f"{size} images in patches of {backbone['patch_size']}"
        + (f", {classes} classes" if classes else f", {checkpoint.model['type']}")
    )
