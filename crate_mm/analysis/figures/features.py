"""Features of images in two dimensions."""

import argparse

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure as MplFigure

from ...evaluation import extract_features
from ...io.untrusted import sanitized
from ...registry import FIGURES
from ..projection import project
from ..taps import name_of
from .base import Figure, FigureInput, FigureOutput, legend, sample_positions, without_ticks
from .style import sheet


@FIGURES.register_module("features")
class Features(Figure):
    """The features of a split's images and their projection."""

    help = "features of images and their projection to two dimensions"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--num-images", type=int, default=2000, help="number of images (default: 2000)")
        parser.add_argument("--method", choices=["pca", "tsne"], default="pca", help="projection (default: pca)")

    def choose(self, total: int, options: argparse.Namespace) -> list[int]:
        if options.layers:
            raise ValueError("features uses the last layer: remove --layers")
        return sample_positions(total, options.num_images, options.seed)

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        columns = extract_features(subject.model, subject.batches)
        features, labels, positions = (column.numpy() for column in columns)
        points = project(features, options.method, options.seed)
        names = list(subject.classes) or [str(i) for i in range(int(labels.max()) + 1)]
        numbers = {"features": features, "labels": labels, "sample_idx": positions, "points": points}
        method = "t-SNE" if options.method == "tsne" else "PCA"
        title = f"{name_of(subject.model)}: {len(features)} images, {method} of the features"
        picture = plot_features(points, labels, names, title)
        return FigureOutput({"features": picture}, {"features.npz": {**numbers, "classes": np.array(names)}})


def plot_features(points: np.ndarray, labels: np.ndarray, names: list[str], title: str) -> MplFigure:
    """Plot points ``(n, 2)`` colored by class, with a legend for at most 20 classes."""
    figure = sheet(7, 5.4, text=0.3)
    axes = figure.subplots()
    present = sorted(set(labels.tolist()))
    cmap = "tab10" if len(present) <= 10 else "tab20"
    if len(present) <= 20:
        for number, label in enumerate(present):
            mine = labels == label
            name = sanitized(names[label], 40) if label >= 0 else "no label"
            axes.scatter(*points[mine].T, s=6, color=colormaps[cmap](number), label=name)
        legend(axes, fontsize="x-small", markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.scatter(*points.T, s=6, c=labels, cmap="nipy_spectral")
    without_ticks([axes])
    axes.set_title(sanitized(title), fontsize="medium", parse_math=False)
    return figure
