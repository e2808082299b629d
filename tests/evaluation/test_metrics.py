import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from crate_mm import evaluation
from crate_mm.evaluation import ClassificationMetric
from tests.conftest import by_pytorch, free_port


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
    assert run(metric, *again) == run(metric, *again) == figures  # an evaluation starts afresh
    assert metric.samples["sample_idx"].tolist() == list(range(50))
    assert torch.equal(metric.samples["label"][ids], labels)
    assert torch.equal(metric.samples["top"][ids], logits.topk(5).indices)
    torch.testing.assert_close(metric.samples["loss"][ids], F.cross_entropy(logits, labels, reduction="none"))


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


def _evaluate(rank, port, folder):
    """A process of three: the first has no batch, the others see sample 2 both."""
    os.environ.update(by_pytorch(rank, 3, port))
    torch.distributed.init_process_group("gloo")
    metric = ClassificationMetric()
    for index in [(), (0, 1, 2), (2, 3)][rank]:
        logits = torch.eye(4)[[index if index < 3 else 0]]  # the last is wrong
        metric.process({}, [{"logits": logits, "labels": torch.tensor([index]), "sample_idx": torch.tensor([index])}])
    figures = metric.evaluate(4)
    empty = ClassificationMetric()
    try:
        empty.evaluate(0)
        said = ""
    except ValueError as error:
        said = str(error)
    rows = metric.samples["sample_idx"].tolist() if metric.samples else None
    (folder / f"{rank}.json").write_text(json.dumps([figures["eval/top1"], rows, said]))
    torch.distributed.destroy_process_group()


def test_the_first_process_has_the_rows_and_all_have_the_figures(tmp_path):
    """A process without a batch, and data without any, which all of them hear of."""
    port, context = free_port(), torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=_evaluate, args=(rank, port, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    nothing = "nothing to evaluate: the data have no batch"
    assert told == [[75.0, [0, 1, 2, 3], nothing], [75.0, None, nothing], [75.0, None, nothing]]
