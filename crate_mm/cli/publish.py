"""Publish a model as one safetensors file: weights, model config, class names, metrics and hash, but no code.

python tools/publish.py work_dirs/crate_base_in1k/best_eval_top1_epoch_149.pth crate_base.safetensors
python tools/test.py configs/crate_base_in1k.py crate_base.safetensors

If the run kept averaged weights, these are published. The optimizer state is not included. Metrics, command, commit and
machine are taken from the run's result.json, if this file is in the checkpoint's folder.
"""

import argparse
from pathlib import Path

from ..checkpoints import open_checkpoint
from ..checkpoints.publish import publish
from ..engine.checkpointing.results import find_result, published_facts
from ..io.untrusted import sanitized, say
from .options import Parser, add_shared, check_output, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("input", metavar="IN", help="training checkpoint")
    parser.add_argument("output", metavar="OUT", help="file to write, *.safetensors")
    add_shared(parser, "--force")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        output = Path(args.output)
        if output.suffix != ".safetensors":
            raise ValueError(f"{output} must be named *.safetensors")
        check_output(args.output, force=args.force)
        checkpoint = open_checkpoint(args.input)
        checkpoint.log_notes(say)
        manifest = publish(checkpoint, output, published_facts(find_result(checkpoint), checkpoint))
    metrics = ", ".join(
        f"{sanitized(name)} {value:g}" for name, value in manifest["metrics"].items() if isinstance(value, float)
    )
    say(f"wrote {sanitized(output)}, sha256 of the weights {manifest['sha256']}{', ' if metrics else ''}{metrics}")
