"""Convert a checkpoint of another code base (CRATE, CRATE-MAE, CRATE-alpha, ToST, torchvision's ViT, ...) to ours.

python tools/convert_official.py crate_base_official.pth crate_base.pth
python tools/test.py configs/crate_base_in1k.py crate_base.pth

What shapes do not tell is asked for (--num-heads 6, --given ista_lambda=0.5), unless all that can be seen says which
published model it is; what is assumed is printed, and stored in OUT.
"""

import argparse
from pathlib import Path

from ..checkpoints import CheckpointError, open_checkpoint, write_checkpoint
from ..checkpoints.validate import FORMAT
from ..config.kinds import parse_value
from ..io.untrusted import say
from ..models.layers import to_pair
from .options import KeyValues, Parser, check_writable, positive_int, user_errors

UNKNOWN = (
    "is not a checkpoint of the official CRATE code, nor of another one that is known: CRATE's have pos_embedding and "
    "transformer.layers, CRATE-alpha's conv1 too, ToST's pos_embeder, torchvision's ViT conv_proj and heads.head"
)
HEADS = (
    "number of heads of CRATE, CRATE-MAE, CRATE-alpha (.pth) or torchvision's ViT, where no published model of these "
    "shapes answers it; the files of ToST and of CRATE-alpha's JAX code (.npz) tell it"
)


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("input", metavar="IN", help="file of the other code base")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--num-heads", type=positive_int, help=HEADS)
    parser.add_argument(
        "--given",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="further arguments that shapes do not tell: img_size, ista_step_size, ista_lambda, tokens_norm",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        output = Path(args.output)
        if output.exists() and not args.force:
            raise ValueError(f"{output} exists: --force overwrites it")
        check_writable(args.output)
        given = {name: parse_value(str(text)) for name, text in (args.given or {}).items()}
        opened = open_checkpoint(args.input, **{"num_heads": args.num_heads, **given})
        if "translated_from" not in opened.meta:
            raise CheckpointError(
                f"{args.input} {UNKNOWN}" if not opened.unknown_reason else f"{args.input}: {opened.unknown_reason}"
            )
        if opened.model is None:
            raise CheckpointError(f"{args.input}: {opened.unknown_reason} (--num-heads K)")
        opened.log_notes(say)
        meta = {
            "format": FORMAT,
            "model": opened.model,
            **{key: opened.meta[key] for key in ("translated_from", "assumed")},
        }
        write_checkpoint({"meta": meta, "state_dict": opened.weights}, output)
    backbone = opened.model["backbone"]
    size = " x ".join(map(str, to_pair(backbone["img_size"])))
    classes = (opened.model.get("head") or {}).get("num_classes")
    say(
        f"wrote {output}: {backbone['type']} {backbone.get('arch', '')}, {len(opened.weights)} tensors, "
        f"{sum(value.numel() for value in opened.weights.values()):,} parameters, "
        f"{size} images in patches of {backbone['patch_size']}"
        + (f", {classes} classes" if classes else f", {opened.model['type']}")
    )


if __name__ == "__main__":
    main()
