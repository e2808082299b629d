"""Metrics of a segmentation against a plain count. Samples and processes are those of every ``SampleMetric``."""

import pytest
import torch

from crate_mm.evaluation import SegmentationMetric
from crate_mm.evaluation.segmentation import count_pixels

K = 5


@pytest.fixture
def masks():
    """Ten images; class 3 is nowhere, class 4 only predicted; ignored pixels, and one image without a label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (10, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[4] = 255
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels.clamp(max=2), 4)
    return predicted.to(torch.uint8), labels.to(torch.uint8)


def evaluate(metric, predicted, labels, ids, batch=3):
    for chunk in zip(predicted.split(batch), labels.split(batch), ids.split(batch)):
        row = dict(zip(("predicted", "labels", "sample_idx"), chunk), num_classes=K)
        metric.process({}, [row])
    return metric.evaluate(len(labels))


def plain_count(predicted, labels):
    """One pixel at a time."""
    right, true, guessed = ([0] * K for _ in range(3))
    for p, t in zip(predicted.flatten().tolist(), labels.flatten().tolist()):
        if t != 255:
            right[t] += p == t
            true[t] += 1
            guessed[p] += 1
    ious = [r / (t + g - r) for r, t, g in zip(right, true, guessed) if t + g]
    accuracies = [r / t for r, t in zip(right, true) if t]
    return {
        "eval/miou": 100 * sum(ious) / len(ious),
        "eval/mean_class": 100 * sum(accuracies) / len(accuracies),
        "eval/pixel_acc": 100 * sum(right) / sum(true),
    }


def test_metrics_are_a_plain_count(masks):
    expected = plain_count(*masks)
    assert evaluate(SegmentationMetric(), *masks, torch.arange(10)) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected["eval/miou"] < expected["eval/mean_class"], "class 4 is never right"


def test_the_confusion_matrix_of_each_image(masks):
    predicted, labels = masks
    matrices = count_pixels(predicted, labels, K)
    assert matrices.dtype == torch.int64
    assert matrices[4].sum() == 0
    for i, j in ((0, 4), (2, 2), (1, 0)):
        expected = ((labels == i) & (predicted == j)).flatten(1).sum(1)
        assert torch.equal(matrices[:, i, j], expected)
