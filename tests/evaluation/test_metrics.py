import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, top_k_accuracy_score

from crate_mm.evaluation import ClassificationMetric


def run(metric, logits, labels, ids, batch=7):
    for chunk in zip(logits.split(batch), labels.split(batch), ids.split(batch)):
        metric.process({}, [dict(zip(("logits", "labels", "sample_idx"), chunk))])
    return metric.evaluate(len(labels))


@pytest.fixture
def samples():
    torch.manual_seed(0)
    return torch.randn(50, 10), torch.randint(10, (50,)), torch.randperm(50)


def test_against_scikit_learn(samples):
    logits, labels, ids = samples
    figures = run(ClassificationMetric(), logits, labels, ids)
    scores, classes = logits.softmax(-1).numpy(), np.arange(10)
    for k in (1, 5):
        expected = 100 * top_k_accuracy_score(labels, scores, k=k, labels=classes)
        assert figures[f"eval/top{k}"] == pytest.approx(expected, rel=1e-12)
    assert figures["eval/loss"] == pytest.approx(log_loss(labels, scores.astype(float), labels=classes), rel=1e-5)


def test_samples_seen_twice_count_once(samples):
    logits, labels, ids = samples
    figures = run(ClassificationMetric(), logits, labels, ids)
    again = [torch.cat([x, x[:9], x[3:5]]) for x in samples]
    metric = ClassificationMetric()
    assert run(metric, *again) == figures
    assert metric.samples["sample_idx"].tolist() == list(range(50))
    assert torch.equal(metric.samples["label"][ids], labels)
    assert torch.equal(metric.samples["top"][ids], logits.topk(5).indices)
    torch.testing.assert_close(metric.samples["loss"][ids], F.cross_entropy(logits, labels, reduction="none"))


def test_an_evaluation_starts_afresh(samples):
    metric = ClassificationMetric()
    first = run(metric, *samples)
    assert run(metric, *samples) == first


def test_top5_of_fewer_classes_is_left_out(samples):
    logits, labels, ids = samples
    assert run(ClassificationMetric(), logits[:, :3], labels % 3, ids).keys() == {"eval/top1", "eval/loss"}
