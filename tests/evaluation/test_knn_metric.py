"""k-NN as a metric of an evaluation: the tool's figure, on any number of processes, and the headline of a run."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from crate_mm.config import load_config, resolve_config
from crate_mm.engine import read_checkpoint
from crate_mm.evaluation import KNNMetric, extract_features, knn_predict
from crate_mm.inference.standalone import build_loader
from crate_mm.models import ImageClassifier
from tests.training import debug_config, debug_runner, on_processes, result_of
from tests.two_crops import OPTIONS

KNN = dict(type="KNNMetric", k=5)


class Pictures(Dataset):
    """Random images of 4 classes, each class around a picture of its own; one in ten has no label."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        means = torch.randint(0, 200, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        self.labels = torch.randint(4, (count,), generator=generator)
        noise = torch.randint(0, 56, (count, 3, 16, 16), generator=generator)
        self.images = (means[self.labels] // 3 + noise).to(torch.uint8)
        self.labels[::10] = -1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"inputs": self.images[index], "labels": self.labels[index], "sample_idx": index}


def model():
    torch.manual_seed(0)
    backbone = dict(type="CRATE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=16, patch_size=8)
    return ImageClassifier(backbone, dict(type="LinearHead", num_classes=4))


def evaluate(rank=0, world_size=1, **options):
    metric = KNNMetric(Pictures(90, 1), k=5, batch_size=16, **options)
    metric.task = model().eval()
    data = Pictures(40, 2)
    own = list(range(rank, len(data), world_size)) + [0]  # with one that another process has too
    for batch in DataLoader(data, 8, sampler=own):
        metric.process(batch, [])
    return metric.evaluate(len(data))


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_the_figure_is_that_of_the_votes(temperature):
    metrics = evaluate(temperature=temperature)
    loaders = [DataLoader(Pictures(*which), 16) for which in ((90, 1), (40, 2))]
    (train, labels, _), (test, truth, _) = (extract_features(model(), loader) for loader in loaders)
    guesses = knn_predict(train[labels >= 0], labels[labels >= 0], test[truth >= 0], 5, temperature=temperature)
    assert metrics == {"eval/knn_top1": 100 * (guesses == truth[truth >= 0]).double().mean().item()}
    assert 30 < metrics["eval/knn_top1"] <= 100


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 7])
def test_processes_agree_with_one(processes):
    """Seven have more processes than the bank has batches."""
    figures = on_processes(processes, lambda rank: evaluate(rank, processes))
    assert figures == dict.fromkeys(range(processes), evaluate())


def test_more_neighbors_than_samples_are_refused_before_the_run(tmp_path):
    runner = debug_runner(tmp_path, val_evaluator=dict(type="KNNMetric", k=1000))
    with pytest.raises(ValueError, match="k must be between 1 and the 320 training images, got 1000"):
        runner.build_for_training()


def test_the_bank_is_the_training_data_as_it_is_tested():
    cfg = load_config("crate_tiny_in1k", {"val_evaluator": KNN, "data_root": "/data"})
    metric = resolve_config(cfg, world_size=1).val_evaluator
    assert metric.bank.transforms == cfg.val_dataloader.dataset.transforms != cfg.train_dataloader.dataset.transforms
    assert metric.bank.source == {**cfg.train_dataloader.dataset.source, "root": "/data"}
    assert metric.batch_size == cfg.val_dataloader.batch_size
    cfg.train_dataloader = None
    assert "bank" not in resolve_config(cfg, world_size=1).val_evaluator
    with pytest.raises(ValueError, match="KNNMetric has no training samples, because .* has no train_dataload"):
        KNNMetric()


@pytest.mark.slow
def test_it_is_the_headline_of_a_run(tmp_path):
    """Of a task without classes; the figure is the tool's, of the weights that are saved."""
    options = {**OPTIONS, "val_evaluator": [KNN], "train_cfg__max_epochs": 2, "ema_momentum": 0.5}
    runner = debug_runner(tmp_path, **options, default_hooks__checkpoint__save_best="eval/knn_top1")
    runner.train()
    result = result_of(tmp_path)
    assert result["headline"] == {"metric": "knn_top1", "rule": "greater"}
    (best,) = tmp_path.glob("best_eval_knn_top1_epoch_*.pth")
    assert best.stem.endswith(str(result["best"]["epoch"]))
    runner.task.load_state_dict(read_checkpoint(best)["state_dict"])
    cfg = debug_config()
    (train, labels, _), (test, truth, _) = (
        extract_features(runner.task, build_loader(cfg, s)) for s in ("train", "val")
    )
    top1 = 100 * (knn_predict(train, labels, test, 5) == truth).double().mean().item()
    assert result["best"]["knn_top1"] == pytest.approx(top1, abs=1.01)  # a tie by rounding is one image of a hundred


@pytest.mark.slow
def test_a_test_has_it_too(run_tool, debug_checkpoint, tmp_path):
    config = tmp_path / "with_knn.py"
    evaluators = "[dict(type='ClassificationMetric'), dict(type='KNNMetric', k=5)]"
    base = load_config("debug").filename
    config.write_text(f"_base_ = [{str(base)!r}]\ntest_evaluator = {evaluators}\n")
    done = run_tool("test", config, debug_checkpoint, "--work-dir", tmp_path)
    assert done.code == 0, done.output
    tool = run_tool("knn", "debug", debug_checkpoint, "--k", 5, "--work-dir", tmp_path / "knn")
    assert tool.code == 0, tool.output
    assert result_of(tmp_path)["last"]["knn_top1"] == pytest.approx(
        result_of(tmp_path / "knn")["last"]["top1"], abs=0.5
    )
    warm = run_tool("knn", "debug", debug_checkpoint, "--temperature", 0.07, "--work-dir", tmp_path / "warm")
    assert (warm.code, result_of(tmp_path / "warm")["temperature"]) == (0, 0.07), warm.output
