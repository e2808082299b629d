"""Write a page that compares a trained CRATE with its untrained twin on handwritten digits, layer by layer.

crate-mm demo
python tools/demo.py --out demo.html

Weights and images are installed with the package, so nothing is trained or downloaded. The command
'crate-mm report crate_mini_digits random crate_mini_digits --out FILE' writes the same page.
"""

import sys
from pathlib import Path

from ..io.untrusted import say
from . import report
from .options import Parser

MODEL = "crate_mini_digits"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", default="crate_mm_demo.html", metavar="FILE", help="HTML file to write (default: crate_mm_demo.html)"
    )
    out = parser.parse_args().out
    sys.argv = ["crate-mm report", MODEL, "random", MODEL, "--out", out]  # the page quotes this command
    report.main()
    say(f"open {Path(out).resolve().as_uri()} in a browser")
