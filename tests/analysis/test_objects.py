"""Objects without labels: MaskCut on planted affinities, COCO's format, and AP."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm.analysis.figures import FigureInput
from crate_mm.analysis.figures.objects import find_objects
from crate_mm.analysis.maskcut import average_precision, coco_annotation, maskcut, normalized_cut, patch_affinity
from crate_mm.datasets import Scenes
from crate_mm.models import ImageClassifier
from crate_mm.registry import FIGURES

pytest.importorskip("pycocotools", reason='no pycocotools: pip install "crate_mm[test]" brings it')
PERFECT = pytest.approx(dict(AP=1.0, AP50=1.0, AP75=1.0))
ARCH = dict(embed_dim=24, depth=2, num_heads=2)


def planted(blocks, noise=0.0):
    """The affinity of patches with a label each: 1 within a label, 0 between labels, and symmetric noise."""
    labels = blocks.flatten()
    affinity = (labels[:, None] == labels).astype(float)
    draw = np.random.RandomState(0).uniform(-noise, noise, affinity.shape)
    return affinity + (draw + draw.T) / 2


def scene(*rectangles, grid=(8, 10)):
    blocks = np.zeros(grid, int)
    for number, (top, bottom, left, right) in enumerate(rectangles, 1):
        blocks[top:bottom, left:right] = number
    return blocks


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(
    "rectangles",
    [
        [(2, 5, 3, 7)],
        [(1, 4, 1, 4), (5, 7, 5, 9)],
        [(0, 3, 0, 3), (4, 8, 6, 10)],  # in two corners
        [(1, 4, 1, 4), (5, 7, 5, 9), (1, 3, 6, 8)],
    ],
)
def test_clear_blocks_are_the_objects(rectangles, noise):
    blocks = scene(*rectangles)
    masks = maskcut(planted(blocks, noise), blocks.shape, len(rectangles))
    assert len(masks) == len(rectangles)
    assert {mask.tobytes() for mask in masks} == {(blocks == i + 1).tobytes() for i in range(len(rectangles))}


def test_affinities_below_the_threshold_are_no_affinities():
    blocks = scene((1, 4, 1, 4), (5, 7, 5, 9))
    weak = np.maximum(planted(blocks), 0.14)
    assert np.array_equal(maskcut(weak, blocks.shape, 1)[0], maskcut(planted(blocks), blocks.shape, 1)[0])
    strong = planted(blocks) - 2 * np.eye(80)  # negative entries are no affinities either
    assert len(maskcut(strong, blocks.shape, 2)) == 2


def test_the_cut_solves_its_equation():
    weights = np.random.RandomState(0).uniform(0.1, 1, (9, 9))
    weights += weights.T
    y, D = normalized_cut(weights), np.diag(weights.sum(1))
    values, vectors = np.linalg.eig(np.linalg.inv(D) @ (D - weights))
    second = vectors[:, np.argsort(values.real)[1]].real
    assert abs(y @ second) / np.linalg.norm(y) / np.linalg.norm(second) == pytest.approx(1, abs=1e-9)


def test_bad_affinities_are_refused():
    with pytest.raises(ValueError, match=r"expected finite affinities of 6 x 6 patches, got shape \(4, 4\)"):
        maskcut(np.ones((4, 4)), (2, 3))
    with pytest.raises(ValueError, match="expected finite affinities"):
        maskcut(np.full((6, 6), np.nan), (2, 3))
    with pytest.raises(ValueError, match="the number of objects must be at least 1, got 0"):
        maskcut(np.ones((6, 6)), (2, 3), 0)


def build(family, **options):
    torch.manual_seed(0)
    backbone = dict(type=family, arch=ARCH, img_size=32, patch_size=8, in_channels=1, **options)
    preprocessor = dict(mean=(0.5,), std=(0.5,))
    return ImageClassifier(backbone, dict(type="LinearHead", num_classes=3), preprocessor).eval()


def test_affinity_is_of_the_projected_tokens_or_of_the_keys():
    images = torch.randn(2, 1, 32, 32)
    model, taken = build("CRATE"), []
    block = model.backbone.blocks[0]
    block.norm_compress.register_forward_hook(lambda _, inputs, out: taken.append(out))
    affinity, grid = patch_affinity(model, images, 0)
    tokens, (U, K) = taken[0][:, 1:].double(), block.subspaces()
    inner = sum((tokens @ U_k) @ (tokens @ U_k).mT for U_k in U.double().chunk(K, 1))
    length = inner.diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(affinity, inner / length[:, None] / length[:, :, None], rtol=1e-5, atol=1e-6)
    assert grid == (4, 4)
    for model, proj in ((build("ViT"), "in_proj"), (build("CRATE", compress=dict(type="SoftmaxAttention")), "qkv")):
        taken = []
        attention = model.backbone.blocks[1].compress
        attention.tap_w.register_forward_hook(lambda _, inputs, out, t=taken: t.append(out))
        affinity, _ = patch_affinity(model, images)
        weight, bias = (getattr(attention, "in_proj_weight", None), getattr(attention, "in_proj_bias", None))
        if proj == "qkv":
            weight, bias = attention.qkv.weight, attention.qkv.bias
        keys = torch.nn.functional.linear(taken[0], weight[24:48], bias[24:48])[:, 1:].double()
        keys = keys / keys.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(affinity, keys @ keys.mT, rtol=1e-5, atol=1e-6)


def test_average_precision_of_right_and_wrong_objects():
    masks = [scene(rectangle, grid=(40, 50)) == 1 for rectangle in ((2, 12, 3, 20), (15, 38, 30, 45), (20, 30, 2, 12))]
    truth = [coco_annotation(mask, image, number) for number, (mask, image) in enumerate(zip(masks, (1, 1, 2)), 1)]
    assert truth[0]["bbox"] == [3, 2, 17, 10]
    assert truth[0]["area"] == 170
    data = {"images": [{"id": i, "width": 50, "height": 40} for i in (1, 2)], "categories": [{"id": 1}]}
    data["annotations"] = truth
    perfect = [coco_annotation(mask, image, 1, 1.0) for mask, image in zip(masks, (1, 1, 2))]
    precisions = average_precision(data, perfect)
    assert precisions["bbox"] == PERFECT
    assert precisions["segm"] == PERFECT
    assert average_precision(data, [])["segm"] == dict(AP=0.0, AP50=0.0, AP75=0.0)
    # One of three found: precision 1 up to recall 1/3, at 34 of 101 points.
    assert average_precision(data, perfect[:1])["bbox"]["AP"] == pytest.approx(34 / 101)
    # IoU 0.6: counts at 0.5, 0.55 and 0.6, of ten thresholds.
    part = masks[0].copy()
    part[8:] = False
    inexact = average_precision(data, [coco_annotation(part, 1, 1, 1.0), *perfect[1:]])["segm"]
    assert inexact["AP50"] == pytest.approx(1)
    assert inexact["AP75"] < 1.0
    other = [dict(annotation, category_id=2) for annotation in truth]
    assert average_precision({**data, "annotations": other, "categories": [{"id": 2}]}, perfect)["bbox"] == PERFECT
    with pytest.raises(ValueError, match="the ground truth has no objects"):
        average_precision({**data, "annotations": []}, perfect)


def options_of(*words):
    figure, parser = FIGURES.build(dict(type="objects")), argparse.ArgumentParser()
    figure.add_options(parser)
    options = parser.parse_args([*map(str, words)])
    options.layers, options.seed = None, 0
    return figure, options


def plant(monkeypatch, blocks):
    affinity = torch.from_numpy(planted(blocks))[None]
    monkeypatch.setattr("crate_mm.analysis.figures.objects.patch_affinity", lambda *_: (affinity, tuple(blocks.shape)))


def test_masks_have_the_images_own_size(monkeypatch):
    plant(monkeypatch, scene((1, 3, 1, 2), grid=(4, 4)))
    (mask,) = find_objects(build("CRATE"), Image.new("RGB", (80, 40)), 0, count=1)
    expected = np.zeros((40, 80), bool)
    expected[10:30, 20:40] = True
    assert np.array_equal(mask, expected)


def test_a_coco_file_is_searched_and_scored(monkeypatch, tmp_path):
    plant(monkeypatch, scene((1, 3, 1, 2), grid=(4, 4)))
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    mask = np.zeros((40, 80), bool)
    mask[10:30, 20:40] = True
    entry = {"id": 7, "file_name": "a.png", "width": 80, "height": 40}
    data = {"images": [entry], "annotations": [coco_annotation(mask, 7, 1)], "categories": [{"id": 1}]}
    (tmp_path / "truth.json").write_text(json.dumps(data))
    figure, options = options_of("--coco", tmp_path / "truth.json", "--folder", tmp_path, "--count", 1)
    drawn = figure.run([FigureInput("", build("CRATE"))], options)
    summary, found = drawn.numbers["objects_summary.json"], drawn.numbers["objects.json"]
    assert (summary["images"], summary["objects"], summary["layer"]) == (1, 1, 2)
    assert summary["bbox"] == PERFECT
    assert summary["segm"] == PERFECT
    (annotation,) = json.loads(json.dumps(found))["annotations"]
    assert (annotation["image_id"], annotation["bbox"], annotation["score"]) == (7, [20, 10, 20, 20], 1.0)
    assert annotation["segmentation"] == data["annotations"][0]["segmentation"]
    (tmp_path / "truth.json").write_text(json.dumps({**data, "images": [{**entry, "width": 81}]}))
    with pytest.raises(ValueError, match=r"a\.png has 80 x 40 pixels, but truth\.json says 81 x 40"):
        figure.run([FigureInput("", build("CRATE"))], options)
    for text in ("[]", '{"images": [{"id": 7}], "annotations": []}'):
        (tmp_path / "truth.json").write_text(text)
        with pytest.raises(ValueError, match="has no annotations in COCO's format"):
            figure.run([FigureInput("", build("CRATE"))], options)


def test_scenes_need_no_file_and_their_instances_are_their_objects():
    scenes = Scenes(None, "val", length=20, size=32)
    for index in range(20):
        instances, labels = scenes.instances(index), scenes.load(index)[1]
        assert 1 <= len(instances) <= 4
        assert np.array_equal(sum(mask.astype(int) for mask in instances), labels != len(scenes.classes) - 1)
        assert all(len(np.unique(labels[mask])) == 1 for mask in instances)
    figure, options = options_of("--root", "none", "--num-images", 3, "--pictures", 2)
    drawn = figure.run([FigureInput("", build("CRATE"))], options)
    assert drawn.numbers["objects_summary.json"]["images"] == 3
    assert "AP50 / AP75 / AP" in drawn.note
    assert len(drawn.pictures["objects"].axes) == 6


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--coco", "x.json"), "--coco FILE and --folder DIR belong together"),
        (("--coco", "x.json", "--folder", "x", "--files", "y"), "give --files or --coco, not both"),
        (("--num-images", -1), "must be at least 0"),
        (("--threshold", "nan"), "threshold must be a cosine, from -1 to 1, got nan"),
        (("--files", "none.jpg"), r"image none\.jpg cannot be read"),
    ],
)
def test_wrong_options_are_refused(words, sentence):
    figure, options = options_of(*words)
    with pytest.raises(ValueError, match=sentence):
        figure.run([FigureInput("", build("CRATE"))], options)


def test_without_pycocotools_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    figure, options = options_of()
    with pytest.raises(ValueError, match=r"objects needs pycocotools, .*: pip install 'crate_mm\[coco\]'"):
        figure.run([FigureInput("", build("CRATE"))], options)
