"""Continue a text with a causal language model; print each token as soon as it is drawn.

python tools/generate.py epoch_3.pth --prompt "def "
python tools/generate.py epoch_3.pth --prompt "import " --temperature 0.7 --top-k 40 --seed 0 --max-tokens 200
python tools/generate.py my.safetensors --tokenizer gpt2.json --temperature 0

The checkpoint determines the model and the tokenizer. Byte-level models need no tokenizer file. The text ends at the
end of the document, after --max-tokens, or with Ctrl-C. When the text fills all positions of the model, the model
continues from the last half of the positions.
"""

import argparse
import os
import re
import sys

from mmengine.device import get_device

from ..api import init_model
from ..inference.generate import TextGenerator
from ..io.untrusted import sanitized
from .options import Parser, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="training or published checkpoint of a language model")
    # The prompt is bytes, because it need not be UTF-8. A leading ~ is text, not a home directory.
    parser.add_argument("--prompt", type=os.fsencode, default=b"", metavar="TEXT", help="initial text (default: none)")
    parser.add_argument("--max-tokens", type=positive_int, default=500, help="largest number of tokens (default: 500)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="divides the logits; 0 takes the most likely token (default: 0.8)",
    )
    parser.add_argument("--top-k", type=positive_int, metavar="K", help="sample from the K most likely tokens only")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the fewest tokens whose probabilities sum to at least P"
    )
    parser.add_argument("--seed", type=int, help="seed of the sampling (default: a random one)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer file, not for byte-level models")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        model = init_model(None, args.checkpoint, device=get_device())
        generate = TextGenerator(model, args.tokenizer)
        pieces = generate.stream(args.prompt, args.max_tokens, args.temperature, args.top_k, args.top_p, args.seed)
        try:
            write(args.prompt.decode(errors="replace"))
            for piece in pieces:
                write(piece)
        finally:
            write("\n")


def write(text: str) -> None:
    """Print a piece of text and flush; escape control characters, because they could change the terminal's state."""
    parts = (part if part in "\n\t" else sanitized(part, sys.maxsize) for part in re.split("([\n\t])", text))
    print("".join(parts), end="", flush=True)
