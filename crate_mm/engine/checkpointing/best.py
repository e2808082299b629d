"""The best epoch by a metric, and its checkpoint."""

from collections.abc import Callable
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner

from ..mmengine_private import KNOWN_RULES

BETTER: dict[str, Callable[[float, float], bool]] = {"greater": lambda a, b: a > b, "less": lambda a, b: a < b}


def rule_of(metric: str, runner: Runner) -> str:
    """Whether 'greater' or 'less' of a metric is better, as the task's headline, the metric or MMEngine knows it.

    Raises:
        ValueError: none of them does.
    """
    if metric == runner.task.headline[0]:
        return runner.task.headline[1]
    for evaluator in runner.val_evaluator.metrics:
        prefix, rules = f"{evaluator.prefix}/" if evaluator.prefix else "", getattr(evaluator, "rules", {})
        if metric.startswith(prefix) and metric.removeprefix(prefix) in rules:
            return rules[metric.removeprefix(prefix)]
    name = metric.rpartition("/")[2]
    known = {rule for part, rule in KNOWN_RULES.items() if part in name}
    if len(known) != 1:
        raise ValueError(
            f"save_best {metric!r}: whether more or less of it is better is not known: "
            "set default_hooks.checkpoint.rule to 'greater' or 'less'"
        )
    return known.pop()


class BestCheckpoint:
    """Keeps the checkpoint of the best epoch by a metric; score and file stand in the message hub, as in MMEngine.

    Args:
        metric: its name, with its prefix.
        rule: 'greater' or 'less'.
        alone: whether there is no other one, so that the entries of the message hub need no name.
    """

    def __init__(self, metric: str, rule: str, alone: bool) -> None:
        self.metric, self.rule = metric, rule
        suffix = "" if alone else f"_{metric}"
        self.score_key, self.path_key = f"best_score{suffix}", f"best_ckpt{suffix}"

    def warn_if_missing(self, runner: Runner) -> None:
        """Warn if the best checkpoint that a resumed run knows of is no longer there: only a better one follows it."""
        info = runner.message_hub.runtime_info
        path, score = info.get(self.path_key), info.get(self.score_key)
        if path and score is not None and not Path(path).is_file():
            runner.logger.warning(
                f"{path} is gone: it had {score:.4f} {self.metric}, and no other is written until an epoch is better"
            )

    def update(self, runner: Runner, score: float) -> bool:
        """Write the checkpoint if the score is the best, then delete the one before; return whether it was the best.

        All processes call it. If the file cannot be written, the one before stays, and counts.
        """
        hub = runner.message_hub
        before = {key: hub.runtime_info.get(key) for key in (self.score_key, self.path_key)}
        so_far = before[self.score_key]
        if score != score or (so_far is not None and not BETTER[self.rule](score, so_far)):
            return False
        path = Path(runner.work_dir) / f"best_{self.metric.replace('/', '_')}_epoch_{runner.epoch}.pth"
        hub.update_info_dict({self.score_key: score, self.path_key: str(path)})
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        weights_only = {"save_optimizer": False, "save_param_scheduler": False}
        written = [runner.save_checkpoint(runner.work_dir, path.name, meta=meta, **weights_only)]
        broadcast_object_list(written)  # the first process's: all must know of the same best one
        if not written[0]:
            for key, value in before.items():
                hub.runtime_info.pop(key)
                hub.runtime_info.update({key: value} if value is not None else {})
            return True
        runner.logger.info(
            f"The best checkpoint with {score:.4f} {self.metric} at {runner.epoch} epoch is saved to {path.name}."
        )
        old = before[self.path_key]
        if is_main_process() and old and Path(old) != path and Path(old).is_file():
            Path(old).unlink()
        return True
