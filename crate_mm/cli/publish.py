"""Publish a model: its weights as safetensors with config, class names, metrics and hash, and nothing that runs.

python tools/publish.py work_dirs/crate_base_in1k/best_eval_top1_epoch_149.pth crate_base.safetensors
python tools/test.py configs/crate_base_in1k.py crate_base.safetensors

The weights are the averaged ones where the training kept such; the optimizer's state stays behind.
"""

import argparse
from pathlib import Path

from ..checkpoints import open_checkpoint
from ..checkpoints.publish import publish
from ..io.untrusted import sanitized, say
from .options import Parser, check_writable, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("input", metavar="IN", help="checkpoint of training")
    parser.add_argument("output", metavar="OUT", help="file to write, *.safetensors")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        output = Path(args.output)
        if output.suffix != ".safetensors":
            raise ValueError(f"{output} must be named *.safetensors")
        if output.exists() and not args.force:
            raise ValueError(f"{output} exists: --force overwrites it")
        check_writable(args.output)
        opened = open_checkpoint(args.input)
        opened.log_notes(say)
        about = publish(opened, output)
    figures = ", ".join(
        f"{sanitized(name)} {value:g}" for name, value in about["metrics"].items() if isinstance(value, float)
    )
    say(f"wrote {sanitized(output)}, sha256 of the weights {about['sha256']}{', ' if figures else ''}{figures}")


if __name__ == "__main__":
    main()
