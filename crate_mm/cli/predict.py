"""Predict the classes of images: files, folders and patterns, printed, as CSV or as a sheet.

python tools/predict.py crate_base.pth my/photos --out predictions.csv
python tools/predict.py crate_base.pth "my/photos/*/*.jpg" cat.jpg --out sheet.png --top 3
python tools/predict.py my.pth my/photos --config my_config.py

The checkpoint says what the model is and how its test prepared images; images that come out of that in another size
than the model's are resized to it. An image that cannot be read stands in its place with the reason. In a CSV file a
name that a spreadsheet would take for a formula has an apostrophe before it, and what is no printable character stands
there as \\n or \\xNN.
"""

import argparse
import csv
import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.device import get_device

from ..analysis.figures.sheet import Panel, plot_sheet, save_sheet
from ..api import init_model
from ..config.resolve import share_of_cores
from ..datasets import ImageFiles
from ..engine import amp_dtype
from ..inference.predictor import Prediction, Predictor
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say, spreadsheet_cell
from .options import Parser, check_writable, positive_int, user_errors

ON_A_SHEET = 30


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint of a classifier, of training, published or of another code base")
    parser.add_argument("images", nargs="+", metavar="PATH", help="image file, folder, or pattern such as 'a/**/*.jpg'")
    parser.add_argument("--config", help="config of the model, where the checkpoint does not say what it is")
    parser.add_argument("--out", metavar="FILE", help="*.csv: a row an image; *.png, *.pdf: a sheet of the first ones")
    parser.add_argument("--top", type=positive_int, default=5, metavar="K", help="classes an image (default: 5)")
    parser.add_argument("--number", type=positive_int, help=f"images of a sheet (default: {ON_A_SHEET})")
    parser.add_argument("--batch", type=positive_int, default=64, help="images at once (default: 64)")
    parser.add_argument("--amp", action="store_true", help="mixed precision: bf16, or fp16 where the GPU has no bf16")
    return parser.parse_args()


def find_images(paths: Iterable[str]) -> list[Path]:
    """The files that paths stand for, in their order: a folder for all images below it, a pattern for what it matches.

    Raises:
        ValueError: there is no such file or folder, nothing matches, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += ImageFiles(str(path)).files
        elif path.is_file() or not glob.has_magic(str(path)):
            if not path.exists():
                raise ValueError(f"there is no file or folder {sanitized(path)}")
            found.append(path)
        else:
            matched = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
            if not any(file.is_file() for file in matched):
                raise ValueError(f"no file matches {sanitized(path)}")
            found += [file for file in matched if file.is_file()]
    return found


def csv_rows(predictions: Iterable[Prediction], top: int) -> Iterator[list]:
    """The header and a row an image: its file, the classes, their probabilities, and why there are none."""
    ranks = range(1, top + 1)
    yield ["image", *(f"top{rank}" for rank in ranks), *(f"score{rank}" for rank in ranks), "error"]
    for found in predictions:
        names, scores = zip(*found.classes) if found.classes else ([""] * top, [""] * top)
        yield [spreadsheet_cell(cell) for cell in (str(found.image), *names)] + [
            *scores,
            spreadsheet_cell(found.reason),
        ]


def panel(found: Prediction) -> Panel:
    """An image of a sheet as the model gets it, with its classes."""
    pixels = None if found.pixels is None else found.pixels.permute(1, 2, 0).numpy()
    lines = [found.image.name, *(f"{name}  {100 * score:.1f} %" for name, score in found.classes)]
    return Panel(pixels, lines, f"cannot be read: {found.reason}")


def line(found: Prediction) -> str:
    classes = ", ".join(f"{sanitized(name)} {100 * score:.1f} %" for name, score in found.classes)
    return f"{sanitized(found.image, 500)}: {classes or f'cannot be read: {found.reason}'}"


class Counted:
    """Predictions as they pass, and how many of them there were and could not be read."""

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self.predictions, self.count, self.broken, self.reason = predictions, 0, 0, ""

    def __iter__(self) -> Iterator[Prediction]:
        for found in self.predictions:
            self.count += 1
            self.broken += bool(found.reason)
            self.reason = self.reason or found.reason
            yield found

    def __str__(self) -> str:
        return f"predicted {self.count - self.broken} of {self.count} images" + (
            f", {self.broken} cannot be read" if self.broken else ""
        )


def main() -> None:
    args = parse_args()
    with user_errors():
        kind = Path(args.out).suffix.lower() if args.out else ""
        if args.out and kind not in (".csv", ".png", ".pdf"):
            raise ValueError(f"--out {sanitized(args.out)} must end in .csv for rows, or in .png or .pdf for a sheet")
        if args.number and kind not in (".png", ".pdf"):
            raise ValueError("--number is of a sheet's images: --out sheet.png makes one")
        check_writable(args.out)
        images = find_images(args.images)
        some = images if kind not in (".png", ".pdf") else images[: args.number or ON_A_SHEET]
        model = init_model(args.config, args.checkpoint, get_device())
        dtype = amp_dtype() if args.amp else "float32"
        predictor = Predictor(model, topk=args.top, batch_size=args.batch, dtype=dtype)
        predictor.preparation.resize_to_model(model)
        found, notes = Counted(predictor.stream(some, workers=share_of_cores())), []
        if kind == ".csv":
            with atomic_file(args.out, text=True) as file:
                csv.writer(file).writerows(csv_rows(found, predictor.topk))
            changed = sum(spreadsheet_cell(str(image)) != str(image) for image in images)
            if changed:
                notes.append(f"names with an apostrophe before them or with escapes, so that they are text: {changed}")
        elif kind:
            panels = [panel(one) for one in found]
            save_sheet(plot_sheet(panels, f"{Path(args.checkpoint).name}: {found}"), args.out)
            if len(some) < len(images):
                notes.append(f"{len(images) - len(some)} more images are not on the sheet (--number)")
        else:
            for one in found:
                say(line(one))
        if args.out:
            notes.insert(0, f"written to {sanitized(args.out)}")
        if found.broken == found.count:
            raise ValueError(f"no image of {found.count} can be read; the first: {found.reason}")
    say("; ".join([str(found), *notes]))


if __name__ == "__main__":
    main()
