"""Predict the classes of images, or of their pixels; print them, or write a CSV file, a sheet of images or masks.

python tools/predict.py crate_base.pth my/photos --out predictions.csv
python tools/predict.py crate_base.pth "my/photos/*/*.jpg" cat.jpg --out sheet.png --top 3
python tools/predict.py my.pth my/photos --config my_config.py
python tools/predict.py segmentation.pth my/photos --out masks

The checkpoint determines the model and its test transforms. If the transforms do not produce the model's input size,
images are resized to that size. For an image that cannot be read, the output states the reason. In a CSV file, an
apostrophe precedes a name that a spreadsheet would read as a formula, and \\n or \\xNN replace nonprintable characters.
For a segmentation model, --out is a folder. It receives one palette PNG per image, with class indices as pixels, and
masks.json with the names and colors of the classes and the fraction of each class in each image.
"""

import argparse
import csv
import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from mmengine.device import get_device

from ..analysis.figures.sheet import Panel, plot_sheet, save_sheet
from ..api import init_model
from ..config.resolve import share_of_cores
from ..datasets import ImageFiles
from ..datasets.masks import palette, to_palette_image
from ..engine import amp_dtype
from ..inference.masks import MaskPredictor
from ..inference.predictor import Prediction, Predictor
from ..io.files import atomic_file, write_json
from ..io.untrusted import sanitized, say, spreadsheet_cell
from ..models import Segmentation
from .options import Parser, add_shared, check_output, positive_int, user_errors

SHEET_IMAGES = 30


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint", help="checkpoint of a classifier or segmentation model: from training, published or third-party"
    )
    add_shared(parser, "images", "--config", "--batch", "--amp")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="*.csv: a row per image; *.png, *.pdf: a sheet of the first images; for segmentation: a folder of masks",
    )
    parser.add_argument("--top", type=positive_int, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--number", type=positive_int, help=f"images on a sheet (default: {SHEET_IMAGES})")
    return parser.parse_args()


def find_images(paths: Iterable[str]) -> list[Path]:
    """Expand files, folders (all images below them) and patterns to a list of files, in the order of the arguments.

    Raises:
        ValueError: a file or folder does not exist, a pattern matches no file, or a folder has no image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += ImageFiles(str(path)).files
        elif path.is_file() or not glob.has_magic(str(path)):
            if not path.exists():
                raise ValueError(f"there is no file or folder {sanitized(path)}")
            files.append(path)
        else:
            matches = [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if file.is_file()]
            if not matches:
                raise ValueError(f"no file matches {sanitized(path)}")
            files += matches
    return files


def csv_rows(predictions: Iterable[Prediction], top: int) -> Iterator[list]:
    """Yield the header and one row per image: file, classes, probabilities and error."""
    ranks = range(1, top + 1)
    yield ["image", *(f"top{rank}" for rank in ranks), *(f"score{rank}" for rank in ranks), "error"]
    for prediction in predictions:
        names, scores = zip(*prediction.classes) if prediction.classes else ([""] * top, [""] * top)
        yield [spreadsheet_cell(cell) for cell in (str(prediction.image), *names)] + [
            *scores,
            spreadsheet_cell(prediction.reason),
        ]


def panel(prediction: Prediction) -> Panel:
    """Return the panel of an image on a sheet: the image as the model receives it, and its classes."""
    pixels = None if prediction.pixels is None else prediction.pixels.permute(1, 2, 0).numpy()
    lines = [prediction.image.name, *(f"{name}  {100 * score:.1f} %" for name, score in prediction.classes)]
    return Panel(pixels, lines, f"cannot be read: {prediction.reason}")


def line(prediction: Prediction) -> str:
    classes = ", ".join(f"{sanitized(name)} {100 * score:.1f} %" for name, score in prediction.classes)
    return f"{sanitized(prediction.image, 500)}: {classes or f'cannot be read: {prediction.reason}'}"


class PredictionCounter:
    """Iterable of predictions that counts all images and the unreadable ones while it is consumed.

    Attributes:
        reason: why the first unreadable image could not be read.
    """

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self.predictions, self.count, self.unreadable, self.reason = predictions, 0, 0, ""

    def __iter__(self) -> Iterator[Prediction]:
        for prediction in self.predictions:
            self.count += 1
            self.unreadable += bool(prediction.reason)
            self.reason = self.reason or prediction.reason
            yield prediction

    def __str__(self) -> str:
        return f"predicted {self.count - self.unreadable} of {self.count} images" + (
            f", {self.unreadable} cannot be read" if self.unreadable else ""
        )


def segment(args: argparse.Namespace, model: Segmentation, images: list[Path]) -> list[str]:
    """Predict masks. Write them to ``--out``, or print the classes of each image; return the parts of the summary.

    Raises:
        ValueError: ``--out`` has a file extension, two masks would have one name, or no image can be read.
    """
    if Path(args.out or "").suffix:
        raise ValueError(f"the model is a segmentation: --out names a folder for its masks, got {sanitized(args.out)}")
    predictor = MaskPredictor(model, amp_dtype() if args.amp else "float32")
    names, folder, entries, reasons = predictor.class_names, Path(args.out or ""), [], []
    same = [stem for stem, count in Counter(image.stem for image in images).items() if count > 1]
    if args.out and same:
        raise ValueError(f"several images are called {sanitized(same[0])}: their masks would have the same name")
    if args.out:
        folder.mkdir(parents=True, exist_ok=True)
    for prediction in predictor.stream(images):
        name = sanitized(prediction.image, 500)
        if prediction.labels is None:
            reasons.append(prediction.reason)
            entries.append({"image": str(prediction.image), "reason": prediction.reason})
            if not args.out:
                say(f"{name}: cannot be read: {prediction.reason}")
            continue
        counts = np.bincount(prediction.labels.flat, minlength=len(names))
        shares = {names[i]: counts[i] / counts.sum() for i in np.argsort(-counts, kind="stable") if counts[i]}
        if not args.out:
            classes = list(shares.items())[: args.top]
            say(f"{name}: {', '.join(f'{sanitized(label)} {100 * share:.1f} %' for label, share in classes)}")
            continue
        file = f"{prediction.image.stem}.png"
        with atomic_file(folder / file) as target:
            to_palette_image(prediction.labels).save(target, "PNG")
        entries.append({"image": str(prediction.image), "mask": file, "classes": shares})
    if args.out:
        classes = [{"name": name, "color": color} for name, color in zip(names, palette(len(names)).tolist())]
        write_json(folder / "masks.json", {"classes": classes, "images": entries})
    if len(reasons) == len(images):
        raise ValueError(f"none of the {len(images)} images can be read; the first: {reasons[0]}")
    summary = f"segmented {len(images) - len(reasons)} of {len(images)} images"
    return [summary, *([f"{len(reasons)} cannot be read"] if reasons else [])]


def main() -> None:
    args = parse_args()
    with user_errors():
        rule = "--out {} must end in .csv for rows, or in .png or .pdf for a sheet"
        is_folder = args.out and not Path(args.out).suffix
        kind = check_output(args.out, (".csv", ".png", ".pdf"), rule) if args.out and not is_folder else ""
        if args.number and kind not in (".png", ".pdf"):
            raise ValueError("--number needs a sheet, such as --out sheet.png")
        images = find_images(args.images)
        selected = images if kind not in (".png", ".pdf") else images[: args.number or SHEET_IMAGES]
        model = init_model(args.config, args.checkpoint, get_device())
        if isinstance(model, Segmentation):
            parts = segment(args, model, images)
            say("; ".join([*parts, *([f"written to {sanitized(args.out)}"] if args.out else [])]))
            return
        if is_folder:
            raise ValueError(rule.format(sanitized(args.out)))
        dtype = amp_dtype() if args.amp else "float32"
        predictor = Predictor(model, topk=args.top, batch_size=args.batch, dtype=dtype)
        predictor.preparation.resize_to_model(model)
        predictions, notes = PredictionCounter(predictor.stream(selected, workers=share_of_cores())), []
        if kind == ".csv":
            with atomic_file(args.out, text=True) as file:
                csv.writer(file).writerows(csv_rows(predictions, predictor.topk))
            escaped_names = sum(spreadsheet_cell(str(image)) != str(image) for image in images)
            if escaped_names:
                notes.append(f"file names written with an apostrophe or escapes: {escaped_names}")
        elif kind:
            panels = [panel(prediction) for prediction in predictions]
            save_sheet(plot_sheet(panels, f"{Path(args.checkpoint).name}: {predictions}"), args.out)
            if len(selected) < len(images):
                notes.append(f"{len(images) - len(selected)} more images are not on the sheet (--number)")
        else:
            for prediction in predictions:
                say(line(prediction))
        if args.out:
            notes.insert(0, f"written to {sanitized(args.out)}")
        if predictions.unreadable == predictions.count:
            raise ValueError(f"none of the {predictions.count} images can be read; the first: {predictions.reason}")
    say("; ".join([str(predictions), *notes]))
