"""Which epoch is the best, and which files stay."""

import shutil

import pytest
import torch

from crate_mm.engine import RunStoppedError, read_checkpoint
from crate_mm.engine.checkpointing.best import rule_of
from crate_mm.engine.checkpointing.hook import CheckpointHook
from crate_mm.evaluation import ClassificationMetric
from crate_mm.registry import METRICS
from tests.training import debug_runner, log_of, result_of, train


@METRICS.register_module()
class Scripted(ClassificationMetric):
    """Figures that are given: ``top1`` rises, and so do ``loss`` and ``oddity``, whose best epoch is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def compute_metrics(self, samples):
        self.epoch += 1
        return {"top1": 10.0 * self.epoch, "loss": float(self.epoch), "oddity": float(self.epoch)}


def train_scripted(folder, save_best, epochs=2, **options):
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
        ("eval/oddity", "less", ["best_eval_oddity_epoch_1.pth"], 1),
        ("eval/oddity", "greater", ["best_eval_oddity_epoch_2.pth"], 2),
        (["eval/loss", "auto"], None, ["best_eval_loss_epoch_1.pth", "best_eval_top1_epoch_2.pth"], 1),
    ],
)
@pytest.mark.slow
def test_the_best_is_by_the_metric_that_is_named(tmp_path, save_best, rule, kept, epoch):
    files, result = train_scripted(tmp_path, save_best, default_hooks__checkpoint__rule=rule)
    assert files == kept
    assert result["best"]["epoch"] == epoch
    first = save_best if isinstance(save_best, str) else save_best[0]
    assert result["headline"]["metric"] == ("top1" if first == "auto" else first.removeprefix("eval/"))


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (dict(rule="more"), "rule must be 'greater' or 'less', got 'more'"),
        (dict(by_epoch=False), "leave out by_epoch"),
        (dict(background="yes"), "background must be True or False, got 'yes'"),
        (dict(every_iters=0), "every_iters must be a number above 0 or None, got 0"),
        (dict(evry_iters=5), "CheckpointHook has no argument evry_iters"),
    ],
)
def test_a_wrong_argument_is_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        CheckpointHook(**argument)


def test_mean_class_has_a_rule(tmp_path):
    assert rule_of("eval/mean_class", debug_runner(tmp_path)) == "greater"


@pytest.mark.slow
def test_what_is_better_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="save_best 'eval/oddity': cannot tell whether greater or less is better"):
        train_scripted(tmp_path, "eval/oddity", epochs=1)
    with pytest.raises(RunStoppedError, match="save_best 'eval/top1' is not a metric: did you mean eval/top5"):
        train(tmp_path, val_evaluator__topk=(5,))


@pytest.mark.slow
def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    scores = iter([float("nan"), 1.0, float("nan")])
    monkeypatch.setattr(Scripted, "compute_metrics", lambda self, samples: {"top1": next(scores), "loss": 1.0})
    files, result = train_scripted(tmp_path, "auto", epochs=3)
    assert files == ["best_eval_top1_epoch_2.pth"]
    assert result["best"]["epoch"] == 2


@pytest.mark.slow
def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    options = dict(default_hooks__checkpoint__max_keep_ckpts=2, global_batch_size=106)
    train(tmp_path, train_cfg__max_epochs=5, **options)
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == ["epoch_4.pth", "epoch_5.pth"]
    assert len(list(tmp_path.glob("best_*"))) == 1


@pytest.mark.slow
def test_a_copied_work_folder_leaves_the_original_alone(epoch, tmp_path):
    """And a best checkpoint that is gone is said."""
    (original,) = epoch.glob("best_*")
    shutil.copytree(epoch, tmp_path / "b")
    (tmp_path / "b" / original.name).unlink()
    checkpoint = read_checkpoint(tmp_path / "b" / "epoch_1.pth")
    checkpoint["message_hub"]["runtime_info"]["best_score"] = -1.0  # for the next epoch to be better
    torch.save(checkpoint, tmp_path / "b" / "epoch_1.pth")
    train(tmp_path / "b", resume=True, train_cfg__max_epochs=2)
    assert f"{original.name} is missing: the next best checkpoint is written when" in log_of(tmp_path / "b")
    assert original.exists()
    (best,) = (tmp_path / "b").glob("best_*")
    assert best.name != original.name  # it did improve
