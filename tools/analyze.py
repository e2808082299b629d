"""Look inside a model: one command a figure, each leaving PNG, PDF and the numbers.

python tools/analyze.py layers     configs/crate_tiny_digits.py random epoch_1.pth epoch_40.pth
python tools/analyze.py tokens     configs/crate_tiny_digits.py epoch_40.pth
python tools/analyze.py subspaces  configs/crate_tiny_digits.py epoch_40.pth
python tools/analyze.py attention  configs/crate_base_in1k.py crate_base.pth --images cat.jpg dog.jpg --size 448
python tools/analyze.py pca        configs/crate_base_in1k.py crate_base.pth --images cat1.jpg cat2.jpg cat3.jpg
python tools/analyze.py features   configs/crate_tiny_digits.py epoch_40.pth --method tsne

CHECKPOINT is a file of ours or of the official code, or 'random' for the model as it is initialised.
"""

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import set_random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.capture import LayerError, capture, find_taps
from crate_mm.analysis.layers import MEASURES, measure_layers, subspaces
from crate_mm.analysis.measures import subspace_gram, subspace_incoherence
from crate_mm.analysis.plots import (
    plot_attention,
    plot_features,
    plot_layers,
    plot_pca,
    plot_subspaces,
    plot_tokens,
    save,
)
from crate_mm.analysis.projection import pca_colors, project
from crate_mm.datasets import build_transforms
from crate_mm.datasets.images import UnreadableImageError, open_image
from crate_mm.datasets.transforms import to_uint8
from crate_mm.engine import load_config
from crate_mm.engine.cli import add_cfg_options, one_sentence_errors, positive
from crate_mm.engine.features import build_backbone_from, build_loader
from crate_mm.evaluation import extract_features
from crate_mm.files import atomic_file
from crate_mm.registry import MODELS
from crate_mm.untrusted import shortened, shown, spreadsheet_cell


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")

    def add(name: str, text: str, many: bool = False, images: bool = False) -> argparse.ArgumentParser:
        figure = figures.add_parser(name, help=text, description=text)
        figure.add_argument("config", help="config file, or the name of one that comes with the package")
        figure.add_argument("checkpoint", nargs="+" if many else None, help="checkpoint file, or 'random'")
        figure.add_argument("--out", metavar="DIR", help="folder for the files (default: work_dirs/<config>/analysis)")
        figure.add_argument("--layers", type=int, nargs="+", metavar="L", help="layers, from 1, or from the last as -1")
        figure.add_argument("--seed", type=int, default=0, help="of 'random' and of what is drawn (default: 0)")
        if images:
            figure.add_argument("--images", nargs="+", required=True, metavar="FILE", help="image files")
            figure.add_argument(
                "--size", type=positive, metavar="PIXELS", help="side of the images (default: config's)"
            )
        elif name != "subspaces":
            nargs = "+" if name == "layers" else None
            figure.add_argument(
                "--split", nargs=nargs, choices=["train", "val", "test"], default=["test"] if nargs else "test"
            )
        add_cfg_options(figure)
        return figure

    layers = add("layers", "R^c, sparsity and more by layer, with the spread over samples (Figures 3, 4, 5)", many=True)
    layers.add_argument("--num-images", type=positive, default=1000, help="how many images (default: 1000)")
    layers.add_argument("--eps-squared", type=float, default=0.01, help="eps^2 of the coding rates (default: 0.01)")
    layers.add_argument("--raw-length", action="store_true", help="leave the tokens' lengths: not scaled to 1 first")
    layers.add_argument("--measures", nargs="+", choices=list(MEASURES), default=["rc_half", "sparsity", "active"])
    tokens = add("tokens", "heat maps of a block of each layer's tokens (Figures 6, 8-11)")
    tokens.add_argument("--index", type=int, default=0, help="which image of the split (default: 0)")
    tokens.add_argument("--block", type=positive, default=50, help="side of the block (default: 50)")
    spaces = add("subspaces", "Gram matrix of the subspaces and their incoherence by layer (Figure 7)")
    spaces.add_argument("--directions", type=positive, default=4, help="directions a head in the picture (default: 4)")
    add("attention", "the CLS token's attention by head and layer over images", images=True)
    pca = add("pca", "principal components of patch tokens as colours, over several images together", images=True)
    pca.add_argument("--foreground", action="store_true", help="split off the background by the first component")
    features = add("features", "the images' features, and where they lie in two dimensions")
    features.add_argument("--num-images", type=positive, default=2000, help="how many images (default: 2000)")
    features.add_argument("--method", choices=["pca", "tsne"], default="pca", help="of the projection (default: pca)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        if args.layers and 0 in args.layers:
            raise ValueError("layers are counted from 1, or from the last as -1: there is no layer 0")
        args.picked = [layer - 1 if layer > 0 else layer for layer in args.layers] if args.layers else None
        args.out = Path(args.out or f"work_dirs/{Path(args.config).stem}/analysis")
        args.out.mkdir(parents=True, exist_ok=True)
        cfg = load_config(args.config, args.cfg_options)
        try:
            files = FIGURES[args.figure](args, cfg)
        except LayerError as error:  # on the command line the first layer is 1, as in the paper
            raise LayerError(*error.arguments, first=1) from None
        print("wrote " + ", ".join(map(shown, files)))


def analyze_layers(args: argparse.Namespace, cfg: Config) -> list[Path]:
    """Measures by layer, a curve a checkpoint and split."""
    curves = {}
    for checkpoint in args.checkpoint:
        model = build_model(cfg, checkpoint, args.seed)
        for split in args.split:
            loader = first_images(build_loader(cfg, split), args.num_images, args.seed)
            with measure_layers(model, args.picked, args.eps_squared, not args.raw_length) as gathered:
                run(model, loader)
            label = ", ".join(([Path(checkpoint).stem] if len(args.checkpoint) > 1 else []) + [split])
            while label in curves:
                label += "'"
            curves[label] = gathered.rows()
    table = args.out / "layers.csv"
    with atomic_file(table, text=True) as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "measure", "meaning", "layer", "mean", "std", "images"])
        for label, rows in curves.items():
            label = spreadsheet_cell(label)
            writer.writerows([label, r.measure, MEASURES[r.measure], r.layer, r.mean, r.std, r.count] for r in rows)
    there = {row.measure for rows in curves.values() for row in rows}
    if not there & set(args.measures):
        has = ", ".join(m for m in MEASURES if m in there)
        raise ValueError(f"{name(model)} has none of the measures {', '.join(args.measures)}: choose from {has}")
    if "rc_half" in args.measures and "rc_half" not in there:
        print(
            f"{name(model)} has no subspaces: R^c is not defined, and in the place of sparsity is the share of "
            "positive MLP activations"
        )
    return [*save(plot_layers(curves, args.measures), args.out / "layers"), table]


def analyze_tokens(args: argparse.Namespace, cfg: Config) -> list[Path]:
    """A block of each layer's tokens for one image."""
    model, loader = build_model(cfg, args.checkpoint, args.seed), build_loader(cfg, args.split)
    if not 0 <= args.index < len(loader.dataset):
        raise ValueError(f"--index {args.index} is not there: the split has {len(loader.dataset)} images")
    layers = list(find_taps(model, "tap_out", args.picked))
    with capture(model, ("tap_out",), args.picked) as seen:
        run(model, DataLoader(Subset(loader.dataset, [args.index])))
    N, d = seen["tap_out"][0].shape[1:]
    generator = torch.Generator().manual_seed(args.seed)
    rows, columns = (torch.randperm(n, generator=generator)[: args.block].sort()[0] for n in (d, N))
    blocks = {layer + 1: z[0].T[rows][:, columns].cpu() for layer, z in zip(layers, seen["tap_out"])}
    numbers = args.out / "tokens.npz"
    save_arrays(numbers, rows=rows, columns=columns, **{f"layer_{n}": block.numpy() for n, block in blocks.items()})
    title = f"{name(model)}: {len(rows)} of {d} dimensions, {len(columns)} of {N} tokens"
    return [*save(plot_tokens(blocks, title), args.out / "tokens"), numbers]


def analyze_subspaces(args: argparse.Namespace, cfg: Config) -> list[Path]:
    """The Gram matrix of the subspaces and their incoherence."""
    model = build_model(cfg, args.checkpoint, args.seed)
    blocks = subspaces(model)
    layers = list(find_taps(model, "tap_w", args.picked))
    generator = torch.Generator().manual_seed(args.seed)
    grams, incoherence = {}, {}
    for layer in layers:
        mssa = blocks[layer].mssa
        U, K, p = mssa.proj.weight.detach().T, mssa.num_heads, mssa.head_dim
        shown = torch.cat([k * p + torch.randperm(p, generator=generator)[: args.directions] for k in range(K)])
        grams[layer + 1] = subspace_gram(U[:, shown])
        incoherence[layer + 1] = subspace_incoherence(U, K).item()
    random = math.sqrt(2 / (math.pi * U.shape[0]))
    numbers = args.out / "subspaces.json"
    told = {"mean_abs_cosine_between_heads": incoherence, "of_random_directions": random}
    told["gram_of_shown_directions"] = {layer: gram.tolist() for layer, gram in grams.items()}
    with atomic_file(numbers, text=True) as file:
        file.write(json.dumps(told) + "\n")
    return [*save(plot_subspaces(grams, incoherence, K, random), args.out / "subspaces"), numbers]


def analyze_attention(args: argparse.Namespace, cfg: Config) -> list[Path]:
    """The CLS token's attention over each image."""
    model, images, pictures = model_and_images(args, cfg)
    found = cls_attention(model, images, args.picked)
    rows, columns = grid(model)
    files, numbers = [], {}
    for i, (file, picture) in enumerate(zip(args.images, pictures)):
        maps = {layer + 1: a[i].unflatten(-1, (rows, columns)) for layer, a in found.items()}
        numbers |= {f"{i}_layer_{layer}": m.cpu().numpy() for layer, m in maps.items()}
        large = {
            layer: F.interpolate(m[None], picture.shape[:2], mode="bilinear", align_corners=False)[0]
            for layer, m in maps.items()
        }
        title = f"{name(model)}: the CLS token's attention, {Path(file).name}"
        files += save(plot_attention(picture, large, title), args.out / f"attention_{i}_{shortened(Path(file).stem)}")
    save_arrays(args.out / "attention.npz", **numbers)
    return [*files, args.out / "attention.npz"]


def analyze_pca(args: argparse.Namespace, cfg: Config) -> list[Path]:
    """The first three principal components of the patches of all images together."""
    model, images, pictures = model_and_images(args, cfg)
    layer = args.picked or [-1]
    if len(layer) > 1:
        raise ValueError(f"pca shows one layer, got {len(layer)} of them")
    with capture(model, ("tap_out",), layer) as seen, torch.no_grad():
        model(images)
    colors, shown = pca_colors(seen["tap_out"][0][:, 1:], args.foreground)
    rows, columns = grid(model)
    colors = colors.reshape(len(pictures), rows, columns, 3)
    save_arrays(args.out / "pca.npz", colors=colors, shown=shown.reshape(len(pictures), rows, columns))
    number = layer[0] % len(find_taps(model, "tap_out")) + 1
    title = f"{name(model)}: principal components of the patches, layer {number}"
    return [*save(plot_pca(pictures, list(colors), title), args.out / "pca"), args.out / "pca.npz"]


def analyze_features(args: argparse.Namespace, cfg: Config) -> list[Path]:
    """The features of a split's images and their projection."""
    model = build_model(cfg, args.checkpoint, args.seed)
    if args.picked:
        raise ValueError("features are the last layer's: leave out --layers")
    loader = build_loader(cfg, args.split)
    names = loader.dataset.classes or [str(i) for i in range(model.num_classes)]
    loader = first_images(loader, args.num_images, args.seed)
    features, labels, positions = extract_features(model, loader)
    points = project(features.numpy(), args.method, args.seed)
    numbers = args.out / "features.npz"
    save_arrays(numbers, features=features, labels=labels, sample_idx=positions, points=points, classes=np.array(names))
    title = f"{name(model)}: {len(features)} images, {'t-SNE' if args.method == 'tsne' else 'PCA'} of the features"
    return [*save(plot_features(points, labels.numpy(), names, title), args.out / "features"), numbers]


FIGURES = {
    "layers": analyze_layers,
    "tokens": analyze_tokens,
    "subspaces": analyze_subspaces,
    "attention": analyze_attention,
    "pca": analyze_pca,
    "features": analyze_features,
}


def build_model(cfg: Config, checkpoint: str, seed: int) -> nn.Module:
    """A config's model in eval mode, with a checkpoint's backbone or at random."""
    if checkpoint == "random":
        set_random_seed(seed)
        if not cfg.get("model"):
            raise ValueError("the config has no model")
        return MODELS.build(cfg.model).to(get_device()).eval()
    return build_backbone_from(cfg, checkpoint)[0]


def first_images(loader: DataLoader, count: int, seed: int) -> DataLoader:
    """A loader of ``count`` images of another's, drawn at random, the same for a seed."""
    total = len(loader.dataset)
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort()[0]
    return DataLoader(Subset(loader.dataset, drawn.tolist()), loader.batch_size, num_workers=loader.num_workers)


@torch.inference_mode()
def run(model: nn.Module, loader: DataLoader) -> None:
    """Pass a loader's images through a model."""
    for batch in loader:
        model(model.data_preprocessor(batch)["inputs"])


def model_and_images(args: argparse.Namespace, cfg: Config) -> tuple[nn.Module, Tensor, list[np.ndarray]]:
    """A model for images of ``--size``, the image files as its input and as pictures of that size."""
    if args.size:
        cfg.model.backbone.img_size = args.size
    model = build_model(cfg, args.checkpoint, args.seed)
    H, W = model.backbone.img_size
    square = build_transforms([{"type": "Resize", "size": min(H, W)}, {"type": "CenterCrop", "size": (H, W)}])
    inputs, pictures = [], []
    for file in args.images:
        try:
            picture = square(open_image(file))
        except UnreadableImageError as error:
            raise ValueError(f"image {shown(file)} cannot be read: {error}") from None
        pictures.append(np.asarray(picture))
        inputs.append(to_uint8(picture.convert("L") if model.in_channels == 1 else picture))
    device = next(model.parameters()).device
    return model, model.data_preprocessor.normalize(torch.stack(inputs).to(device)), pictures


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays by name, as NPZ."""
    with atomic_file(file) as opened:
        np.savez(opened, **arrays)


def grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of the model's patches."""
    return next(iter(model.backbone.position_grids.values()))


def name(model: nn.Module) -> str:
    return type(model.backbone).__name__


if __name__ == "__main__":
    main()
