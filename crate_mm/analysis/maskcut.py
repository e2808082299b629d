"""Unsupervised object discovery by MaskCut: repeated normalized cuts of an image's patches.

Source: Wang et al., "Cut and Learn for Unsupervised Object Detection and Instance Segmentation", CVPR 2023, arXiv
2301.11320 (MaskCut), with the affinity of Yu et al., "Emergence of Segmentation with Minimalistic White-Box
Transformers", CPAL 2024, arXiv 2308.16271. MaskCut's post-processing by a conditional random field is omitted.
Shapes: N = rows x columns patches, d dimensions, H x W pixels.
"""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .taps import find_layers, layout_of, name_of, read_taps

COUNT = 3  # objects per image
THRESHOLD = 0.15  # smaller affinities are replaced by NO_AFFINITY
NO_AFFINITY = 1e-5  # not zero, so that the graph is connected
# Limits for each object after the first: smallest fraction of the patches, largest IoU with an earlier object.
MIN_FRACTION, MAX_OVERLAP = 0.01, 0.5


@torch.no_grad()
def patch_affinity(model: nn.Module, images: Tensor, layer: int = -1) -> tuple[Tensor, tuple[int, int]]:
    """Return the affinity of the patches in a layer, ``(B, N, N)`` of float64, and their grid (rows, columns).

    The affinity is the cosine similarity of the layer's keys. In a layer with subspaces it is
    ``sum_k <U_k^T z_i, U_k^T z_j>``, where each ``U^T z`` is scaled to unit length. In a ViT, the keys are the
    attention's keys.

    Args:
        model: a task or a backbone.
        images: normalized images ``(B, C, H, W)``.
        layer: index of the layer; negative indices count from the end.

    Raises:
        ValueError: the layer does not exist or compares no tokens, or the tokens form no grid.
    """
    ((number, selected),) = find_layers(model, [layer]).items()
    layout, keys = layout_of(model, images), []
    if layout is None:
        raise ValueError(f"{name_of(model)} does not define its patch grid: its layout(inputs) returns None")
    if "tap_w" in selected.taps():
        with read_taps(model, {"tap_w": lambda _, w: keys.append(selected.keys(w))}, [number]):
            model(images)
    if not keys or keys[0] is None:
        operator = selected if selected.compress is None else selected.compress
        raise ValueError(
            f"layer {number + 1} of {name_of(model)} compares no tokens: its {type(operator).__name__} has neither "
            "subspaces nor keys"
        )
    patches = keys[0][:, layout.prefix : layout.prefix + layout.rows * layout.columns].double()
    patches = nn.functional.normalize(patches, dim=-1)
    return patches @ patches.mT, (layout.rows, layout.columns)


def normalized_cut(weights: np.ndarray) -> np.ndarray:
    """Return the relaxed normalized cut of a graph, ``(N, N) -> (N,)``.

    The cut is the eigenvector y of the second smallest eigenvalue lambda of ``(D - W) y = lambda D y``, where D is the
    diagonal matrix of the degrees.

    Args:
        weights: W, symmetric and positive.
    """
    from scipy.linalg import eigh

    root = weights.sum(1) ** -0.5
    laplacian = np.eye(len(weights)) - root[:, None] * weights * root
    return root * eigh(laplacian, subset_by_index=[1, 1])[1][:, 0]


def maskcut(
    affinity: np.ndarray, grid: tuple[int, int], count: int = COUNT, threshold: float = THRESHOLD
) -> list[np.ndarray]:
    """Return the masks of up to ``count`` objects, each ``(rows, columns)`` of bool, in the order of the cuts.

    A cut splits the patches at the mean of y (``normalized_cut``). The sign of y is flipped if three or more corners of
    the image are above the mean, or if the patch with the largest ``|y|`` is not above the mean. The object is the
    connected component of patches above the mean that contains the largest y. The next cut ignores its affinities. The
    search ends early at a later object with less than 1 % of the patches, or an IoU above 0.5 with an earlier object.

    Args:
        affinity: affinity of the patches, ``(N, N)``.
        grid: rows and columns of the patches.
        count: largest number of objects.
        threshold: affinities below it are replaced by ``NO_AFFINITY``.

    Raises:
        ValueError: the affinity's shape does not match the grid, a value is not finite, ``count`` is not positive, or
            ``threshold`` is not in [-1, 1].
    """
    from scipy.ndimage import label

    N = grid[0] * grid[1]
    if affinity.shape != (N, N) or not np.isfinite(affinity).all():
        raise ValueError(f"expected finite affinities of {N} x {N} patches, got shape {affinity.shape}")
    if count < 1:
        raise ValueError(f"the number of objects must be at least 1, got {count}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine, from -1 to 1, got {threshold}")
    weights = np.where(affinity < threshold, NO_AFFINITY, affinity).astype(np.float64)
    covered, masks = np.zeros(N, bool), []
    for _ in range(count):
        weights[covered], weights[:, covered] = NO_AFFINITY, NO_AFFINITY
        y = normalized_cut(weights)
        above, seed = y > y.mean(), np.abs(y).argmax()
        if above.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3 or not above[seed]:
            y, above = -y, ~above
        parts = label(above.reshape(grid))[0]
        mask = parts == parts.flat[y.argmax()]
        overlaps = [(mask & other).sum() / (mask | other).sum() for other in masks]
        if masks and (max(overlaps) > MAX_OVERLAP or mask.mean() < MIN_FRACTION):
            break
        mask &= ~covered.reshape(grid)
        covered |= mask.flatten()
        masks.append(mask)
    return masks


def require_pycocotools() -> None:
    """Raise ``ValueError`` unless pycocotools, which encodes and compares masks, is installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise ValueError(
            "the figure objects needs pycocotools, which is not installed: pip install 'crate_mm[coco]'"
        ) from None


def coco_annotation(mask: np.ndarray, image_id: int, number: int, score: float | None = None) -> dict[str, Any]:
    """Return a mask ``(H, W)`` of bool as an annotation of category 1 in COCO's format.

    Args:
        mask: the mask, with at least one pixel.
        image_id: ID of the image.
        number: ID of the annotation, from 1.
        score: confidence of a found object; None for the ground truth.
    """
    from pycocotools import mask as rle

    segmentation = rle.encode(np.asfortranarray(mask, np.uint8))
    area, box = float(rle.area(segmentation)), rle.toBbox(segmentation).tolist()
    segmentation["counts"] = segmentation["counts"].decode()
    about = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0}
    return (
        about | {"bbox": box, "area": area, "segmentation": segmentation} | ({} if score is None else {"score": score})
    )


def average_precision(truth: dict[str, Any], predicted: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return AP, AP50 and AP75 of boxes ('bbox') and masks ('segm') by pycocotools; all categories count as one.

    Args:
        truth: a dataset in COCO's format, with only the images that were searched.
        predicted: annotations with scores. pycocotools uses at most 100 per image.

    Raises:
        ValueError: the ground truth has no object.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # All categories become 1: with useCats=0, pycocotools still drops objects of categories that the truth lacks.
    truth_of_one, found_of_one = (
        [{**copy.deepcopy(annotation), "category_id": 1} for annotation in annotations]
        for annotations in (truth["annotations"], predicted)
    )
    if not truth_of_one:
        raise ValueError("the ground truth has no objects: AP is not defined")
    results = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
        data = COCO()
        data.dataset = {**truth, "annotations": truth_of_one, "categories": [{"id": 1}]}
        data.createIndex()
        for kind in ("bbox", "segm"):
            if not found_of_one:
                results[kind] = dict.fromkeys(("AP", "AP50", "AP75"), 0.0)
                continue
            evaluation = COCOeval(data, data.loadRes(found_of_one), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            results[kind] = dict(zip(("AP", "AP50", "AP75"), map(float, evaluation.stats[:3])))
    return results
