"""Which epoch is the best, which files stay, and what of an earlier run goes aside."""

import json
from types import SimpleNamespace

import pytest
import torch

from crate_mm.checkpoints.form import check_form
from crate_mm.engine import Runner, RunStoppedError, load_config
from crate_mm.engine.results import describe_checkpoint
from crate_mm.engine.resume import find_start
from crate_mm.evaluation import ClassificationMetric
from crate_mm.registry import METRICS
from tests.training import debug_config, train


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@METRICS.register_module()
class Scripted(ClassificationMetric):
    """Figures that are given: ``top1`` rises, and so do ``loss`` and ``oddity``, whose best epoch is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def compute_metrics(self, samples):
        self.epoch += 1
        return {"top1": 10.0 * self.epoch, "loss": float(self.epoch), "oddity": float(self.epoch)}


def train_scripted(folder, save_best, epochs=3, **options):
    train(
        folder,
        val_evaluator=dict(type="Scripted"),
        default_hooks__checkpoint__save_best=save_best,
        train_cfg__max_epochs=epochs,
        **options,
    )
    return sorted(path.name for path in folder.glob("best_*")), result_of(folder)


@pytest.mark.parametrize(
    ("save_best", "rule", "kept", "epoch"),
    [
        ("auto", None, ["best_eval_top1_epoch_3.pth"], 3),
        ("eval/top1", None, ["best_eval_top1_epoch_3.pth"], 3),
        ("eval/loss", None, ["best_eval_loss_epoch_1.pth"], 1),
        ("eval/oddity", "less", ["best_eval_oddity_epoch_1.pth"], 1),
        ("eval/oddity", "greater", ["best_eval_oddity_epoch_3.pth"], 3),
        (["eval/loss", "auto"], None, ["best_eval_loss_epoch_1.pth", "best_eval_top1_epoch_3.pth"], 1),
    ],
)
@pytest.mark.slow
def test_the_best_is_by_the_metric_that_is_named(tmp_path, save_best, rule, kept, epoch):
    files, result = train_scripted(tmp_path, save_best, default_hooks__checkpoint__rule=rule)
    assert files == kept
    assert result["best"]["epoch"] == epoch
    first = save_best if isinstance(save_best, str) else save_best[0]
    assert result["headline"]["metric"] == ("top1" if first == "auto" else first.removeprefix("eval/"))


def test_a_resume_remembers_the_best(tmp_path):
    train_scripted(tmp_path, "eval/loss", epochs=1)
    train(
        tmp_path,
        resume=True,
        val_evaluator=dict(type="Scripted"),  # which begins again at the loss of the first epoch: no better one
        default_hooks__checkpoint__save_best="eval/loss",
        train_cfg__max_epochs=2,
    )
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_eval_loss_epoch_1.pth"]


def test_mean_class_has_a_rule(tmp_path):
    train(tmp_path, default_hooks__checkpoint__save_best="eval/mean_class", train_cfg__max_epochs=1)
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_eval_mean_class_epoch_1.pth"]


@pytest.mark.slow
def test_what_is_better_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="save_best 'eval/oddity': whether more or less of it is better is not known"):
        train_scripted(tmp_path, "eval/oddity", epochs=1)
    with pytest.raises(ValueError, match="rule must be 'greater' or 'less', got 'more'"):
        train(tmp_path, default_hooks__checkpoint__rule="more")
    with pytest.raises(RunStoppedError, match="save_best 'eval/top1' is no metric: did you mean eval/top5"):
        train(tmp_path, val_evaluator__topk=(5,))


def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    scores = iter([float("nan"), 1.0, float("nan")])
    monkeypatch.setattr(Scripted, "compute_metrics", lambda self, samples: {"top1": next(scores), "loss": 1.0})
    files, result = train_scripted(tmp_path, "auto")
    assert files == ["best_eval_top1_epoch_2.pth"]
    assert result["best"]["epoch"] == 2


@pytest.mark.slow
def test_an_earlier_runs_result_and_config_go_aside_with_its_checkpoints(tmp_path):
    train(tmp_path, train_cfg__max_epochs=2)
    before, config = (tmp_path / "result.json").read_bytes(), (tmp_path / "debug.py").read_bytes()
    train(tmp_path, train_cfg__max_epochs=1, randomness__seed=1)
    (aside,) = tmp_path.glob("before_*")
    kept = {path.name for path in aside.iterdir()}
    assert {"result.json", "debug.py", "epoch_1.pth", "epoch_2.pth"} <= kept
    assert ((aside / "result.json").read_bytes(), (aside / "debug.py").read_bytes()) == (before, config)
    assert (result_of(tmp_path)["seed"], result_of(tmp_path)["max_epochs"]) == (1, 1)
    assert "seed': 1" in (tmp_path / "debug.py").read_text() or "seed=1" in (tmp_path / "debug.py").read_text()


@pytest.mark.slow
def test_a_resume_keeps_its_run_and_what_it_left(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1)
    run = result_of(tmp_path)["run"]
    train(tmp_path, resume=True, train_cfg__max_epochs=2)
    assert result_of(tmp_path)["run"] == run
    assert not list(tmp_path.glob("before_*"))
    train(tmp_path / "other", train_cfg__max_epochs=1)
    assert result_of(tmp_path / "other")["run"] != run


@pytest.mark.slow
def test_resume_in_a_config_takes_the_newest_that_is_intact(tmp_path):
    """As --resume does: the way over the config leads past no guarantee."""
    train(tmp_path, train_cfg__max_epochs=2)
    newest = tmp_path / "epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tmp_path / "last_checkpoint").write_text(str(newest))
    cfg = debug_config(train_cfg__max_epochs=3)
    cfg.work_dir, cfg.resume = str(tmp_path), True
    runner = Runner.from_cfg(cfg)
    runner.train()
    (log, *_) = sorted(tmp_path.glob("*/*.log"), reverse=True)
    assert "epoch_2.pth is damaged" in log.read_text()
    assert "resumed epoch: 1, iter: 10" in log.read_text()
    assert runner.epoch == 3


@pytest.mark.parametrize("first", ["val", "test"])
def test_validation_and_test_by_themselves(tmp_path, debug_checkpoint, first):
    cfg = load_config("debug")
    cfg.work_dir, cfg.load_from = str(tmp_path), str(debug_checkpoint)
    runner = Runner.from_cfg(cfg)
    figures = [runner.val(), runner.test()] if first == "val" else [runner.test(), runner.val()]
    assert figures[0] == figures[1]
    assert 0 < figures[0]["eval/top1"] <= 100
    assert not (tmp_path / "result.json").exists(), "nothing was trained"


def test_validation_in_a_folder_that_is_to_be_resumed(tmp_path, debug_checkpoint):
    cfg = load_config("debug")
    cfg.work_dir, cfg.resume = str(tmp_path), True
    assert torch.isfinite(torch.tensor(Runner.from_cfg(cfg).val()["eval/loss"]))


def test_a_run_that_is_refused_moves_nothing(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1)
    before = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    with pytest.raises(ValueError, match="whether more or less of it is better is not known"):
        train(tmp_path, default_hooks__checkpoint__save_best="eval/oddity")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == before
    assert not list(tmp_path.glob("before_*"))


def test_a_test_after_training_moves_nothing(tmp_path):
    cfg = debug_config(train_cfg__max_epochs=1)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    before = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    runner.test()
    runner.val()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == before


def test_a_config_in_its_own_work_folder_stays(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1)
    cfg = load_config(tmp_path / "debug.py")
    cfg.work_dir = str(tmp_path)
    Runner.from_cfg(cfg).train()
    assert (tmp_path / "debug.py").is_file()
    (aside,) = tmp_path.glob("before_*")
    assert not (aside / "debug.py").exists()


@pytest.mark.parametrize(("resume", "found"), [(True, True), ("newest", False), (False, False)])
def test_a_restart_before_the_first_checkpoint_begins_as_it_was_asked_to(tmp_path, monkeypatch, resume, found):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    cfg = load_config("debug")
    cfg.resume, cfg.load_from = resume, "old/epoch_3.pth"
    assert find_start(cfg, str(tmp_path))[:2] == ("old/epoch_3.pth", found)


def test_odd_transforms_of_a_dataset_of_ones_own_do_not_spoil_a_checkpoint(tmp_path):
    described = describe_checkpoint(
        SimpleNamespace(
            cfg=load_config("debug", {"test_dataloader.dataset.transforms": "bpe"}),
            initialized_from=None,
            optim_wrapper=SimpleNamespace(optimizer=None),
            world_size=1,
            train_dataloader=[],
        )
    )
    assert described["test_transforms"] is None
    check_form({"meta": described}, "x.pth")
