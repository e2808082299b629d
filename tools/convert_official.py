"""Convert a checkpoint of the official CRATE code to ours.

python tools/convert_official.py crate_base_official.pth crate_base.pth
python tools/test.py configs/crate_base_in1k.py crate_base.pth
"""

import argparse
from pathlib import Path

import torch

from crate_mm.conversion import convert_official_state_dict, is_official, official_model_config
from crate_mm.engine import read_checkpoint
from crate_mm.engine.cli import check_writable, one_sentence_errors, positive
from crate_mm.files import atomic_file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help="file of the official code")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--num-heads", type=positive, help="number of heads, for a size that the paper does not have")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        output = Path(args.output)
        if output.exists() and not args.force:
            raise ValueError(f"{output} exists: --force overwrites it")
        check_writable(args.output)
        checkpoint = read_checkpoint(args.input)
        if not is_official(checkpoint):
            raise ValueError(f"{args.input} is not a checkpoint of the official CRATE code: it has no pos_embedding")
        state_dict = convert_official_state_dict(checkpoint, args.num_heads)
        model = official_model_config(checkpoint, args.num_heads)
        with atomic_file(output) as file:
            torch.save({"meta": {"model": model}, "state_dict": state_dict}, file)
    backbone, numbers = model["backbone"], sum(value.numel() for value in state_dict.values())
    print(
        f"wrote {output}: CRATE {backbone['arch']}, {len(state_dict)} tensors, {numbers:,} parameters, "
        f"{backbone['img_size']} x {backbone['img_size']} images in patches of {backbone['patch_size']}, "
        f"{model['head']['num_classes']} classes"
    )


if __name__ == "__main__":
    main()
