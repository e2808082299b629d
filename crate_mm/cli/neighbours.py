"""Write the features of images with their paths, or show the nearest neighbors of images.

python tools/neighbours.py crate_base.pth my/photos --out features.npz
python tools/neighbours.py crate_base.pth my/photos --query cat.jpg dog.jpg --k 7 --out sheet.png

Neighbors are ranked by the cosine similarity of their features, computed with the model's own test transforms. An image
is not its own neighbor. Without --query, 8 of the images are the queries. features.npz holds 'paths' and
'features', one row per image, and 'unreadable' and 'reasons' for the images that cannot be read. A path that is not
valid text contains Python's surrogate escapes.
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
from .options import Parser, add_shared, check_output, positive_int, user_errors
from .predict import find_images

NUM_QUERIES = 8  # without --query


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint: from training, published or third-party")
    add_shared(parser, "images", "--config", "--batch")
    parser.add_argument(
        "--query", nargs="+", metavar="PATH", help=f"images to find neighbors of (default: {NUM_QUERIES} of the images)"
    )
    parser.add_argument("--k", type=positive_int, default=5, help="neighbors per query (default: 5)")
    parser.add_argument("--out", required=True, metavar="FILE", help="*.npz: the features; *.png, *.pdf: the sheet")
    return parser.parse_args()


def write_features(file: str, features: Features) -> None:
    """Write paths and features as NPZ."""
    texts = {
        "paths": [str(path) for path in features.paths],
        "unreadable": [str(path) for path, _ in features.unreadable],
        "reasons": [reason for _, reason in features.unreadable],
    }
    columns = {name: np.array(values, dtype=np.str_) for name, values in texts.items()}
    with atomic_file(file) as stream:
        np.savez(stream, features=features.rows.numpy(), **columns)


def panels_of(images: Features, queries: Features, itself: Tensor, k: int, prepare: EvalTransform) -> list[Panel]:
    """Return a row of panels per query: the framed query, then its neighbors with their similarities."""
    rows, similarities = nearest(images.rows, queries.rows, k, itself)

    def panel(path: Path, line: str, framed: bool = False) -> Panel:
        return Panel(prepare(path).permute(1, 2, 0).numpy(), [path.name, path.parent.name, line], framed=framed)

    panels = []
    for query, neighbors, scores in zip(queries.paths, rows.tolist(), similarities.tolist()):
        panels.append(panel(query, "query", framed=True))
        panels += [panel(images.paths[row], f"cosine {score:.3f}") for row, score in zip(neighbors, scores)]
    return panels


def default_queries(images: Features) -> Features:
    """Return ``NUM_QUERIES`` of the images, spread evenly, or all of them if there are fewer."""
    count = len(images.paths)
    if count <= NUM_QUERIES:
        return images
    rows = [number * count // NUM_QUERIES for number in range(NUM_QUERIES)]
    return Features([images.paths[row] for row in rows], images.rows[rows], [])


def main() -> None:
    args = parse_args()
    with user_errors():
        kind = check_output(
            args.out,
            (".npz", ".png", ".pdf"),
            "--out {} must end in .npz for features, or in .png or .pdf for a sheet",
        )
        if kind == ".npz" and args.query:
            raise ValueError("--query needs a sheet, such as --out sheet.png")
        files = find_images(args.images)
        query_files = find_images(args.query) if args.query else None
        model = task_of(init_model(args.config, args.checkpoint, get_device()))
        prepare, workers = EvalTransform(model), share_of_cores()
        prepare.resize_to_model(model)
        images = extract(model, files, prepare, args.batch, workers)
        queries = images
        if kind == ".npz":
            write_features(args.out, images)
        else:
            if query_files:
                queries = extract(model, query_files, prepare, args.batch, workers)
            else:
                queries = default_queries(images)
            row_of = {path.resolve(): row for row, path in enumerate(images.paths)}
            itself = torch.tensor([row_of.get(path.resolve(), -1) for path in queries.paths])
            panels = panels_of(images, queries, itself, args.k, prepare)
            title = f"{Path(args.checkpoint).name}: nearest of {len(images.paths)} images, by cosine similarity"
            save_sheet(plot_sheet(panels, title, columns=args.k + 1), args.out)
        for path, reason in {**dict(images.unreadable), **dict(queries.unreadable)}.items():
            say(f"{sanitized(path, 500)}: cannot be read: {reason}")
    say(f"wrote {sanitized(args.out)}: {images}")
