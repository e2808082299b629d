"""Save the checkpoint of the best epoch by a metric."""

from collections.abc import Callable
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner

from ..mmengine_private import KNOWN_RULES

BETTER: dict[str, Callable[[float, float], bool]] = {"greater": lambda a, b: a > b, "less": lambda a, b: a < b}


def rule_of(metric: str, runner: Runner) -> str:
    """Return whether 'greater' or 'less' values of a metric are better.

    The task's headline, the metric's own ``rules`` and MMEngine's rules are tried in this order.

    Raises:
        ValueError: the rule of the metric is unknown.
    """
    if metric == runner.task.headline[0]:
        return runner.task.headline[1]
    for evaluator in runner.val_evaluator.metrics:
        prefix, rules = f"{evaluator.prefix}/" if evaluator.prefix else "", getattr(evaluator, "rules", {})
        if metric.startswith(prefix) and metric.removeprefix(prefix) in rules:
            return rules[metric.removeprefix(prefix)]
    name = metric.rpartition("/")[2]
    matches = {rule for part, rule in KNOWN_RULES.items() if part in name}
    if len(matches) != 1:
        raise ValueError(
            f"save_best {metric!r}: cannot tell whether greater or less is better: "
            "set default_hooks.checkpoint.rule to 'greater' or 'less'"
        )
    return matches.pop()


class BestCheckpoint:
    """Checkpoint of the best epoch by a metric. As in MMEngine, the message hub stores its score and path.

    Args:
        metric: name of the metric, with its prefix.
        rule: 'greater' or 'less'.
        alone: whether no other metric has a best checkpoint; the message hub's keys then have no suffix.
    """

    def __init__(self, metric: str, rule: str, alone: bool) -> None:
        self.metric, self.rule = metric, rule
        suffix = "" if alone else f"_{metric}"
        self.score_key, self.path_key = f"best_score{suffix}", f"best_ckpt{suffix}"

    def warn_if_missing(self, runner: Runner) -> None:
        """Warn if the best checkpoint of a resumed run is missing: only a better epoch replaces it."""
        info = runner.message_hub.runtime_info
        path, score = info.get(self.path_key), info.get(self.score_key)
        if path and score is not None and not Path(path).is_file():
            runner.logger.warning(
                f"the best checkpoint {path} is missing: the next best checkpoint is written when {self.metric} is "
                f"better than {score:.4f}"
            )

    def update(self, runner: Runner, score: float) -> bool:
        """Write the checkpoint if the score is the best, then delete the previous one; return whether it is the best.

        All ranks call it. If the write fails, the previous file and score stay.
        """
        hub = runner.message_hub
        before = {key: hub.runtime_info.get(key) for key in (self.score_key, self.path_key)}
        best_score = before[self.score_key]
        if score != score or (best_score is not None and not BETTER[self.rule](score, best_score)):
            return False
        path = Path(runner.work_dir) / f"best_{self.metric.replace('/', '_')}_epoch_{runner.epoch}.pth"
        hub.update_info_dict({self.score_key: score, self.path_key: str(path)})
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        weights_only = {"save_optimizer": False, "save_param_scheduler": False}
        written = [runner.save_checkpoint(runner.work_dir, path.name, meta=meta, **weights_only)]
        broadcast_object_list(written)  # rank 0's result, so that all ranks store the same best checkpoint
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
