"""Show images of a config's data as a model receives them in training: augmented, erased, mixed, with labels or masks.

python tools/browse.py configs/crate_base_in1k.py --cfg-options data_root=/data/imagenet
python tools/browse.py configs/crate_base_in1k.py --same 7 --number 12 --out one_image.png
python tools/browse.py configs/transfer/pets.py --split val

For 'train', the first samples of an epoch are shown, in the order and with the random seeds that training uses with
one process on a CPU. For 'val' and 'test', the samples are spread evenly over the data.
"""

import argparse
import os
from pathlib import Path

from ..analysis.figures.sheet import Panel, plot_sheet, save_sheet
from ..config import default_work_dir, load_config
from ..datasets.masks import overlay
from ..extras.sample_preview import PreviewSample, SamplePreview
from ..io.untrusted import sanitized, say
from .options import Parser, add_shared, check_output, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train", help="default: train")
    parser.add_argument("--number", type=positive_int, default=32, help="number of images (default: 32)")
    parser.add_argument("--epoch", type=positive_int, help="training epoch to show, from 1 (default: 1)")
    parser.add_argument(
        "--same", type=int, metavar="POSITION", help="show this sample (position from 0) in --number epochs"
    )
    parser.add_argument("--out", metavar="FILE", help="*.png or *.pdf (default: work_dirs/<config>/browse_<split>.png)")
    add_shared(parser, "--cfg-options")
    return parser.parse_args()


def panel(sample: PreviewSample, classes: list[str] | None, with_epoch: bool) -> Panel:
    """Return a panel of the sheet: image, labels (with weights if there are several), and file name or epoch."""
    if sample.pixels.shape[0] not in (1, 3):
        raise ValueError(f"{sanitized(sample.path)}: expected 1 or 3 channels, got {sample.pixels.shape[0]}")
    pixels = sample.pixels.permute(1, 2, 0).numpy()
    if sample.mask is not None:
        pixels = overlay(pixels, sample.mask.numpy())
    weights = [(classes[label] if classes else str(label), weight) for label, weight in sample.labels]
    lines = [name if weight == 1 else f"{name}  {100 * weight:.0f} %" for name, weight in weights]
    lines += [f"epoch {sample.epoch}" if with_epoch else os.path.basename(sample.path)]
    lines += filter(None, [sample.replaces])
    return Panel(pixels, lines)


def title(cfg, args: argparse.Namespace, preview: SamplePreview, samples: list[PreviewSample]) -> str:
    name = Path(cfg.filename).stem
    if args.split != "train":
        return f"{name}, {args.split}: {len(samples)} of {len(preview.dataset)} samples"
    selection = f"the first {len(samples)} of {len(preview.dataset)} samples of epoch {args.epoch or 1}"
    if args.same is not None:
        selection = f"sample {args.same}, {os.path.basename(samples[0].path)}, from epoch {args.epoch or 1} on"
    return f"{name}, train: {selection}, seed {preview.seed}"


def main() -> None:
    args = parse_args()
    with user_errors():
        cfg = load_config(args.config, args.cfg_options)
        out = Path(args.out or f"{default_work_dir(cfg)}/browse_{args.split}.png")
        if args.split != "train" and (args.same is not None or args.epoch):
            raise ValueError(f"--same and --epoch need --split train: {args.split} data is the same in every epoch")
        if args.out is None:
            out.parent.mkdir(parents=True, exist_ok=True)
        check_output(str(out), (".png", ".pdf"), "--out {} must end in .png or .pdf")
        preview = SamplePreview(cfg, args.split)
        if args.same is None:
            samples = list(preview.epoch_samples(args.number, args.epoch or 1))
        else:
            samples = list(preview.sample_by_epoch(args.same, args.number, args.epoch or 1))
            if not samples:
                raise ValueError(f"sample {args.same} occurs in none of 100 epochs: every epoch drops it")
        panels = [panel(sample, preview.classes, args.same is not None) for sample in samples]
        save_sheet(plot_sheet(panels, title(cfg, args, preview, samples)), out)
    mixed = ", after the model's batch augmentations" if preview.mixes else ""
    say(f"wrote {sanitized(out)}: {len(samples)} samples{mixed}")
