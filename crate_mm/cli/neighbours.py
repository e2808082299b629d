"""Write the features of images with their paths, or show the images that are nearest to others.

python tools/neighbours.py crate_base.pth my/photos --out features.npz
python tools/neighbours.py crate_base.pth my/photos --query cat.jpg dog.jpg --k 7 --out sheet.png

Nearest is what has the largest cosine similarity of features, which the model's own test transforms prepare. Without
--query some of the images are asked for. An image is not its own neighbour. features.npz holds 'paths' and 'features',
a row an image, and 'unreadable' and 'reasons' of those that cannot be read. A name that is no text has Python's
surrogates.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from torch import Tensor

from ..analysis.figures.sheet import Panel, plot_sheet, save_sheet
from ..api import init_model
from ..config.resolve import share_of_cores
from ..evaluation.knn import nearest
from ..inference.features import Features, extract
from ..inference.transforms import EvalTransform
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say
from ..models.tasks.base import task_of
from .options import Parser, check_writable, positive_int, user_errors
from .predict import find_images

QUERIES = 8


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint, of training, published or of another code base")
    parser.add_argument("images", nargs="+", metavar="PATH", help="image file, folder, or pattern such as 'a/**/*.jpg'")
    parser.add_argument(
        "--query", nargs="+", metavar="PATH", help=f"whose neighbours (default: {QUERIES} of the images)"
    )
    parser.add_argument("--k", type=positive_int, default=5, help="neighbours of each (default: 5)")
    parser.add_argument("--out", required=True, metavar="FILE", help="*.npz: the features; *.png, *.pdf: the sheet")
    parser.add_argument("--config", help="config of the model, where the checkpoint does not say what it is")
    parser.add_argument("--batch", type=positive_int, default=64, help="images at once (default: 64)")
    return parser.parse_args()


def write_features(file: str, found: Features) -> None:
    """Write paths and features as NPZ."""
    broken = {"unreadable": [str(path) for path, _ in found.broken], "reasons": [reason for _, reason in found.broken]}
    named = {"paths": [str(path) for path in found.paths], **broken}
    columns = {name: np.array(values, dtype=np.str_) for name, values in named.items()}
    with atomic_file(file) as opened:
        np.savez(opened, features=found.rows.numpy(), **columns)


def panels_of(found: Features, asked: Features, itself: Tensor, k: int, prepare: EvalTransform) -> list[Panel]:
    """A row for each query: itself, in a frame, and its neighbours with their similarities."""
    rows, similarities = nearest(found.rows, asked.rows, k, itself)

    def panel(path: Path, line: str, framed: bool = False) -> Panel:
        return Panel(prepare(path).permute(1, 2, 0).numpy(), [path.name, path.parent.name, line], framed=framed)

    panels = []
    for query, mine, scores in zip(asked.paths, rows.tolist(), similarities.tolist()):
        panels.append(panel(query, "asked for", framed=True))
        panels += [panel(found.paths[row], f"cosine {score:.3f}") for row, score in zip(mine, scores)]
    return panels


def some_of(found: Features) -> Features:
    """Some of the images, spread over all of them."""
    rows = [number * len(found.paths) // QUERIES for number in range(QUERIES)] if len(found.paths) > QUERIES else ...
    return found if rows is ... else Features([found.paths[row] for row in rows], found.rows[rows], [])


def main() -> None:
    args = parse_args()
    with user_errors():
        kind = Path(args.out).suffix.lower()
        if kind not in (".npz", ".png", ".pdf"):
            raise ValueError(
                f"--out {sanitized(args.out)} must end in .npz for features, or in .png or .pdf for a sheet"
            )
        if kind == ".npz" and args.query:
            raise ValueError("--query is for a sheet: --out sheet.png makes one")
        check_writable(args.out)
        images = find_images(args.images)
        queries = find_images(args.query) if args.query else None
        model = task_of(init_model(args.config, args.checkpoint, get_device()))
        prepare, workers = EvalTransform(model), share_of_cores()
        prepare.resize_to_model(model)
        found = extract(model, images, prepare, args.batch, workers)
        asked = found
        if kind == ".npz":
            write_features(args.out, found)
        else:
            asked = extract(model, queries, prepare, args.batch, workers) if queries else some_of(found)
            places = {path.resolve(): row for row, path in enumerate(found.paths)}
            itself = torch.tensor([places.get(path.resolve(), -1) for path in asked.paths])
            panels = panels_of(found, asked, itself, args.k, prepare)
            title = (
                f"{Path(args.checkpoint).name}: nearest of {len(found.paths)} images, by the cosine of their features"
            )
            save_sheet(plot_sheet(panels, title, columns=args.k + 1), args.out)
        for path, reason in {**dict(found.broken), **dict(asked.broken)}.items():
            say(f"{sanitized(path, 500)}: cannot be read: {reason}")
    say(f"wrote {sanitized(args.out)}: {found}")


if __name__ == "__main__":
    main()
