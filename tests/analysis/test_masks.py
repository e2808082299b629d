"""The figure of a segmentation: masks, the maps of class tokens, and the measures of the decoder's layers."""

import argparse

import numpy as np
import pytest
import torch

from crate_mm.analysis.figures import FigureInput
from crate_mm.analysis.figures.masks import Example, overlaps
from crate_mm.analysis.gather import measure_layers
from crate_mm.models import ImageClassifier, Segmentation
from crate_mm.registry import FIGURES

ARCH = dict(embed_dim=24, depth=1, num_heads=2)
LAYERS = {"DEPICTSA": 2, "DEPICTCA": 5, "CBTDecoder": 2, "LinearDecoder": 0}


def build(head):
    torch.manual_seed(0)
    backbone = dict(type="CRATE", arch=ARCH, img_size=(16, 24), patch_size=8, in_channels=1)
    sizes = {} if head == "LinearDecoder" else dict(depth=2, num_heads=2, head_dim=4)
    head = dict(type=head, num_classes=4, **sizes)
    return Segmentation(backbone, head, preprocessor=dict(mean=(0.5,), std=(0.5,)), window=8).eval()


def data():
    generator = torch.Generator().manual_seed(1)
    labels = torch.full((3, 16, 24), 2, dtype=torch.uint8)
    labels[:, 4:12, :10] = 1
    labels[:, 0] = 255
    inputs = torch.randint(0, 256, (3, 1, 16, 24), dtype=torch.uint8, generator=generator)
    return dict(inputs=inputs, labels=labels, sample_idx=torch.arange(3))


def draw(model, batch, layers=None):
    figure, parser = FIGURES.build(dict(type="masks")), argparse.ArgumentParser()
    figure.add_options(parser)
    options = parser.parse_args([])
    options.layers, options.seed = layers, 0
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 3))]
    return figure.run([FigureInput("", model, halves, classes=tuple("abcd"))], options)


@pytest.mark.parametrize("head", LAYERS)
def test_masks_and_the_white_box_of_each_decoder(head):
    model, batch = build(head), data()
    drawn = draw(model, batch)
    table = drawn.numbers["masks.csv"]
    with torch.no_grad():
        (prediction,) = model.predict(**model.data_preprocessor(batch))  # in windows of 8 pixels
    expected = []
    for i, (truth, predicted) in enumerate(zip(batch["labels"], prediction["predicted"])):
        for label in range(4):
            true, ours = (truth == label), (predicted == label) & (truth != 255)
            if true.any() or ours.any():
                iou = (true & ours).sum().item() / (true | ours).sum().item()
                expected.append([i, label, "abcd"[label], true.sum().item(), ours.sum().item(), pytest.approx(iou)])
    assert table[1:] == expected
    if not LAYERS[head]:
        assert drawn.note == "LinearDecoder has no layers: it has no maps of class tokens and no R^c"
        assert sorted(drawn.numbers) == ["masks.csv"]
        return
    maps = drawn.numbers["masks.npz"]
    assert [maps[f"{i}_maps"].shape for i in range(3)] == [(4, 2, 3)] * 3
    np.testing.assert_allclose(maps["2_maps"].mean((-2, -1)), 1)
    with torch.no_grad(), measure_layers(model.head) as measures:
        model(model.data_preprocessor(batch)["inputs"])
    rates = [row[3] for row in drawn.numbers["decoder_layers.csv"] if row[0] == "rc_half"]
    assert len(rates) == LAYERS[head]
    assert rates == pytest.approx(measures.means("rc_half"), rel=1e-5)
    assert {row[5] for row in drawn.numbers["decoder_layers.csv"][1:]} == {3}
    assert sorted(drawn.pictures) == ["decoder_layers", "decoder_subspaces", "masks"]
    incoherence = drawn.numbers["decoder_subspaces.json"]["mean_abs_cosine_between_heads"]
    assert list(incoherence) == list(range(1, LAYERS[head] + 1))
    xlabels = [axes.get_xlabel() for axes in drawn.pictures["masks"].axes[:15]]
    assert [label.partition(",")[0] for label in xlabels[3:5]] == ["c", "b"], "the largest class first"


def test_a_map_is_the_decoders_attention():
    model, batch = build("DEPICTSA"), data()
    taken = []
    model.head.blocks[0].compress.tap_w.register_forward_hook(lambda _, inputs, w: taken.append(w))
    maps = draw(model, batch, [0]).numbers["masks.npz"]["2_maps"]
    w = taken[-1][0].double().unflatten(-1, (2, 4)).transpose(0, 1)  # of the last image, seen whole last
    attention = (w @ w.mT / 2).softmax(-1)[:, 6:, :6].mean(0).unflatten(-1, (2, 3))
    np.testing.assert_allclose(maps, attention / attention.mean((-2, -1), keepdim=True), rtol=1e-5)


def test_overlaps_ignore_unlabelled_pixels():
    truth, predicted = np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 3]], np.uint8)
    assert overlaps(Example(np.zeros((1, 4, 1)), truth, predicted, None)) == [(0, 2, 1, 0.5), (1, 1, 2, 0.5)]


def test_what_has_no_masks_is_refused():
    model, batch = build("DEPICTCA"), data()
    with pytest.raises(ValueError, match="layer 1 of DEPICTCA has no map of class tokens: choose another layer with"):
        draw(model, batch, [0])
    with pytest.raises(ValueError, match="masks uses one layer of the decoder, got 2"):
        draw(model, batch, [0, 1])
    with pytest.raises(ValueError, match="layer 9 does not exist: DEPICTCA has 5 layers"):
        draw(model, batch, [9])
    with pytest.raises(ValueError, match="masks needs true masks, but the data has none"):
        draw(model, {**batch, "labels": torch.arange(3)})
    classifier = ImageClassifier(dict(type="CRATE", arch=ARCH), dict(type="LinearHead", num_classes=4))
    with pytest.raises(ValueError, match="ImageClassifier predicts no masks: use a Segmentation"):
        draw(classifier, batch)
