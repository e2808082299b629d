"""Masks from attention, and their overlap with true ones, against cases computed by hand."""

import argparse

import numpy as np
import pytest
import torch

from crate_mm.analysis.figures import FigureInput
from crate_mm.analysis.segmentation import attention_masks, best_heads, mean_iou
from crate_mm.datasets.scenes import GROUND, Scenes
from crate_mm.models import ImageClassifier
from crate_mm.registry import FIGURES
from tests import dataset_formats


def test_a_mask_holds_the_largest_entries():
    maps = torch.tensor([[0.1, 0.5, 0.2, 0.05, 0.15], [0.3, 0.3, 0.3, 0.05, 0.05]])
    assert attention_masks(maps, 0.6).tolist() == [[False, True, True, False, True], [True, True, True, False, False]]
    assert attention_masks(maps, 0.01).sum(-1).tolist() == [1, 1]
    assert attention_masks(torch.rand(2, 196)).sum(-1).tolist() == [118, 118]
    with pytest.raises(ValueError, match="fraction must be above 0"):
        attention_masks(maps, 0.0)


def test_the_overlap_computed_by_hand():
    """Class 3 is the left column of 4 pixels, class 7 two pixels at the lower right, one pixel is void."""
    truth = torch.tensor([[3, 0, 0, 255], [3, 0, 0, 0], [3, 0, 0, 7], [3, 0, 0, 7]])
    left = torch.zeros(4, 4, dtype=torch.bool)
    left[:, :2] = True  # 8 pixels: 4 of class 3's 4, so 4 / (4 + 8 - 4) = 1/2; none of class 7's
    right = torch.zeros(4, 4, dtype=torch.bool)
    right[:, 3] = True  # 4 pixels, the void one not counted: 2 of class 7's 2, so 2 / (2 + 3 - 2) = 2/3
    found = best_heads(torch.stack([left, right]), truth)
    assert found == [(3, 0, pytest.approx(1 / 2)), (7, 1, pytest.approx(2 / 3))]
    second = best_heads(torch.stack([left, right]), torch.full((4, 4), 5))
    assert second == [(5, 0, pytest.approx(8 / 16))]
    background = best_heads(torch.stack([left, right]), torch.zeros(4, 4))
    assert background == []
    assert mean_iou([found, second, background]) == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="do not match a ground truth"):
        best_heads(torch.stack([left, right]), truth[:3])


def planted(model, maps):
    """Let the layers of a model attend from the CLS token as the maps (K, N) say."""
    for block in model.backbone.blocks:

        def attention(w, layout):
            K, N = maps.shape
            out = torch.full((1, K, N + 1, N + 1), 1 / (N + 1))
            out[0, :, 0, 1:] = maps
            return out

        block.attention = attention


def options_of(figure, *arguments):
    parser = argparse.ArgumentParser()
    figure.add_options(parser)
    options = parser.parse_args(arguments)
    options.layers = None
    return options


def test_the_figure_meets_a_case_computed_by_hand(tmp_path):
    """4 x 4 patches over masks of 8 x 12 pixels, so that a patch is 2 x 3 of them."""
    arch = dict(embed_dim=24, depth=3, num_heads=2)
    model = ImageClassifier(
        dict(type="CRATE", arch=arch, img_size=8, patch_size=2), dict(type="LinearHead", num_classes=5)
    )
    maps = torch.zeros(2, 16)
    maps[0, :10] = 0.1  # 0.6 of 16 entries are 10: the two upper rows, and two patches of the third
    maps[1, 6:] = 0.1  # two patches of the second row, and the two lower rows
    planted(model.eval(), maps)
    upper = np.zeros((8, 12), int)
    upper[:4] = 15  # 48 pixels; head 1 has 60, all of these among them: 48 / 60
    lower = np.zeros((8, 12), int)
    lower[6:, :6] = 8  # 12 pixels, in head 2's 60: 12 / 60; head 1 has none
    lower[0, :] = 255
    dataset_formats.voc(tmp_path, {"upper": upper, "lower": lower})
    figure = FIGURES.build(dict(type="segments"))
    options = options_of(figure, "--voc", str(tmp_path))
    drawn = figure.run([FigureInput("", model)], options)
    options.voc = "none"
    with pytest.raises(ValueError, match="--voc none has no PASCAL VOC 2012: expected"):
        figure.run([FigureInput("", model)], options)
    told = drawn.numbers["segments.json"]
    assert told["miou"] == pytest.approx((48 / 60 + 12 / 60) / 2)
    assert (told["images"], told["layer"], told["best_by_head"]) == (2, 2, {"1": 1, "2": 1})
    captions = [axes.get_xlabel() for axes in drawn.pictures["segments"].axes]
    assert captions[2:8] == ["person", "cat", *["10 of 17 tokens"] * 2, "head 1, IoU 0.80", "head 2, IoU 0.20"]
    assert drawn.numbers["segments.csv"][1:] == [
        ["upper", 15, "person", 1, pytest.approx(0.8)],
        ["lower", 8, "cat", 2, pytest.approx(0.2)],
    ]


def test_the_classes_of_scenes_are_their_objects_and_the_ground_is_the_background(tmp_path):
    arch = dict(embed_dim=8, depth=2, num_heads=2)
    backbone = dict(type="CRATE", arch=arch, img_size=32, patch_size=8)
    model = ImageClassifier(backbone, dict(type="LinearHead", num_classes=5)).eval()
    figure = FIGURES.build(dict(type="segments"))
    drawn = figure.run([FigureInput("", model)], options_of(figure, "--scenes", str(tmp_path), "--num-images", "3"))
    scenes = Scenes(str(tmp_path), "val", length=3, size=32)
    objects = [sorted({scenes.classes[n] for n in np.unique(scenes.load(i)[1])} - {GROUND}) for i in range(3)]
    rows = drawn.numbers["segments.csv"][1:]
    assert [sorted(row[2] for row in rows if row[0] == f"scene {i}") for i in range(3)] == objects
    assert drawn.numbers["segments.json"]["miou"] == pytest.approx(
        np.mean([np.mean([row[4] for row in rows if row[0] == f"scene {i}"]) for i in range(3)])
    )
