"""Show images of a config's data as a model is trained on them: augmented, erased and mixed, with their labels.

python tools/browse.py configs/crate_base_in1k.py --cfg-options data_root=/data/imagenet
python tools/browse.py configs/crate_base_in1k.py --same 7 --number 12 --out one_image.png
python tools/browse.py configs/transfer/pets.py --split val

Of the training data these are the first samples of an epoch, with the seeds that a run of one process on a CPU gives
them. Of 'val' and 'test' they are spread over the data.
"""

import argparse
import os
from pathlib import Path

import torch

from ..analysis.figures.sheet import Panel, plot_sheet, save_sheet
from ..config import default_work_dir, load_config
from ..engine.loading.sample_preview import PreviewSample, SamplePreview
from ..io.untrusted import sanitized, say
from .options import Parser, add_cfg_options, check_writable, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument("--number", type=positive_int, default=32, help="of images (default: 32)")
    parser.add_argument("--epoch", type=positive_int, help="of training, from 1 (default: 1)")
    parser.add_argument(
        "--same", type=int, metavar="POSITION", help="one sample, by its position from 0, in as many epochs"
    )
    parser.add_argument("--out", metavar="FILE", help="*.png or *.pdf (default: work_dirs/<config>/browse_<split>.png)")
    add_cfg_options(parser)
    return parser.parse_args()


def panel(seen: PreviewSample, classes: list[str] | None, with_epoch: bool) -> Panel:
    """An image of the sheet: its labels, with their shares where they are several, and its file, or its epoch."""
    if seen.pixels.dtype != torch.uint8 or seen.pixels.ndim != 3:
        kind, shape = str(seen.pixels.dtype).removeprefix("torch."), tuple(seen.pixels.shape)
        raise ValueError(
            f"{sanitized(seen.path)} is no image: expected uint8 of shape (C, H, W), got {kind} of {shape}"
        )
    if seen.pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"{sanitized(seen.path)} has {seen.pixels.shape[0]} channels: images of 1 and of 3 can be shown"
        )
    names = [(classes[label] if classes else str(label), share) for label, share in seen.labels]
    lines = [name if share == 1 else f"{name}  {100 * share:.0f} %" for name, share in names]
    lines += [f"epoch {seen.epoch}" if with_epoch else os.path.basename(seen.path), *filter(None, [seen.replaces])]
    return Panel(seen.pixels.permute(1, 2, 0).numpy(), lines)


def title(cfg, args: argparse.Namespace, samples: SamplePreview, found: list[PreviewSample]) -> str:
    name = Path(cfg.filename).stem
    if args.split != "train":
        return f"{name}, {args.split}: {len(found)} of {len(samples.dataset)} samples"
    what = f"the first {len(found)} of {len(samples.dataset)} samples of epoch {args.epoch or 1}"
    if args.same is not None:
        what = f"sample {args.same}, {os.path.basename(found[0].path)}, from epoch {args.epoch or 1} on"
    return f"{name}, train: {what}, seed {samples.seed}"


def main() -> None:
    args = parse_args()
    with user_errors():
        cfg = load_config(args.config, args.cfg_options)
        out = Path(args.out or f"{default_work_dir(cfg)}/browse_{args.split}.png")
        if out.suffix.lower() not in (".png", ".pdf"):
            raise ValueError(f"--out {sanitized(out)} must end in .png or .pdf")
        if args.split != "train" and (args.same is not None or args.epoch):
            raise ValueError(f"--same and --epoch are of training: the {args.split} data is the same in every epoch")
        if args.out is None:
            out.parent.mkdir(parents=True, exist_ok=True)
        check_writable(str(out))
        samples = SamplePreview(cfg, args.split)
        if args.same is None:
            found = list(samples.epoch_samples(args.number, args.epoch or 1))
        else:
            found = list(samples.sample_by_epoch(args.same, args.number, args.epoch or 1))
            if not found:
                raise ValueError(f"sample {args.same} is in none of 100 epochs: a step leaves it out")
        panels = [panel(seen, samples.classes, args.same is not None) for seen in found]
        save_sheet(plot_sheet(panels, title(cfg, args, samples, found)), out)
    mixed = ", as the model augments the batch" if samples.mixes else ""
    say(f"wrote {sanitized(out)}: {len(found)} samples{mixed}")


if __name__ == "__main__":
    main()
