import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from crate_mm import evaluation
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
    balanced = 100 * balanced_accuracy_score(labels, logits.argmax(-1))
    assert figures["eval/mean_class"] == pytest.approx(balanced, rel=1e-12)
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
    assert run(ClassificationMetric(), logits[:, :3], labels % 3, ids).keys() == {
        "eval/top1",
        "eval/mean_class",
        "eval/loss",
    }


def test_samples_without_a_label_are_predicted_and_do_not_count(samples):
    logits, labels, ids = samples
    some = torch.where(torch.arange(50) % 3 == 0, -1, labels)
    metric = ClassificationMetric()
    figures = run(metric, logits, some, ids)
    kept = some >= 0
    assert figures == run(ClassificationMetric(), logits[kept], labels[kept], ids[kept])
    assert len(metric.samples["top"]) == 50
    assert run(metric, logits, torch.full((50,), -1), ids) == {}


def test_per_class_and_confusion_against_scikit_learn(samples):
    logits, labels, ids = samples
    labels = labels % 8  # no sample of the classes 8 and 9, which are predicted all the same
    metric = ClassificationMetric()
    run(metric, logits, labels, ids)
    expected = confusion_matrix(labels, logits.argmax(-1), labels=range(10))
    assert evaluation.confusion_matrix(metric.samples, 10).tolist() == expected.tolist()
    accuracy, count = evaluation.per_class_accuracy(metric.samples, 10)
    assert count.tolist() == expected.sum(1).tolist()
    assert accuracy[:8].tolist() == pytest.approx((100 * expected.diagonal() / expected.sum(1).clip(1))[:8].tolist())
    assert accuracy[8:].isnan().all()


def test_a_process_without_a_batch_has_no_rows(monkeypatch, samples):
    metric, other = ClassificationMetric(), ClassificationMetric()
    logits = torch.eye(3)
    other.process({}, [{"logits": logits, "labels": torch.arange(3), "sample_idx": torch.arange(3)}])
    theirs = {key: torch.cat([row[key] for row in other.results]) for key in other.results[0]}
    monkeypatch.setattr("crate_mm.evaluation.metrics.all_gather_object", lambda mine: [mine, theirs])
    assert metric.evaluate(3)["eval/top1"] == 100
    monkeypatch.setattr("crate_mm.evaluation.metrics.all_gather_object", lambda mine: [mine])
    with pytest.raises(ValueError, match="there is nothing to evaluate: the data has no batch"):
        ClassificationMetric().evaluate(0)
