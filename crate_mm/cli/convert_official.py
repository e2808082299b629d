"""Convert a checkpoint of another code base (the official CRATE and CRATE-MAE code, torchvision's ViT) to ours.

python tools/convert_official.py crate_base_official.pth crate_base.pth
python tools/test.py configs/crate_base_in1k.py crate_base.pth

What shapes do not tell is asked for (--num-heads), unless all that can be seen says which published model it is; what
is assumed is printed, and stored in OUT.
"""

import argparse
from pathlib import Path

import torch

from ..checkpoints import CheckpointError, open_checkpoint
from ..files import atomic_file
from .options import Parser, check_writable, one_sentence_errors, positive


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("input", metavar="IN", help="file of the other code base")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--num-heads", type=positive, help="number of heads, which no file tells")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        output = Path(args.output)
        if output.exists() and not args.force:
            raise ValueError(f"{output} exists: --force overwrites it")
        check_writable(args.output)
        opened = open_checkpoint(args.input, args.num_heads)
        if "translated_from" not in opened.meta:
            raise CheckpointError(
                f"{args.input} is not a checkpoint of the official CRATE code, nor of another one that is known: these "
                "have pos_embedding and transformer.layers, torchvision's ViT conv_proj and heads.head"
            )
        if opened.model is None:
            raise CheckpointError(f"{args.input}: {opened.unknown} (--num-heads K)")
        opened.say(print)
        meta = {"model": opened.model, **{key: opened.meta[key] for key in ("translated_from", "assumed")}}
        with atomic_file(output) as file:
            torch.save({"meta": meta, "state_dict": opened.weights}, file)
    model, state_dict = opened.model, opened.weights
    backbone, numbers = model["backbone"], sum(value.numel() for value in state_dict.values())
    print(
        f"wrote {output}: {backbone['type']} {backbone['arch']}, {len(state_dict)} tensors, {numbers:,} parameters, "
        f"{backbone['img_size']} x {backbone['img_size']} images in patches of {backbone['patch_size']}"
        + (f", {model['head']['num_classes']} classes" if "head" in model else f", {model['type']}")
    )


if __name__ == "__main__":
    main()
