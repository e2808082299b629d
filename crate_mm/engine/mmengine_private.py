"""All uses of MMEngine's private names, tested with MMEngine 0.10.7."""

from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler as ParamScheduler
from mmengine.runner import BaseLoop, Runner

__all__ = ["KNOWN_RULES", "ParamScheduler", "RunnerState", "trim"]

# Substrings of a metric's name that tell MMEngine whether greater or less is better.
KNOWN_RULES = {
    **dict.fromkeys(CheckpointHook._default_greater_keys, "greater"),
    **dict.fromkeys(CheckpointHook._default_less_keys, "less"),
}


def trim(buffer: HistoryBuffer, keep: int) -> None:
    """Keep only the last ``keep`` values of a logged scalar."""
    buffer._log_history = buffer._log_history[-keep:]
    buffer._count_history = buffer._count_history[-keep:]


class RunnerState(Runner):
    """MMEngine's Runner with public access to its private state."""

    @property
    def is_training(self) -> bool:
        """Whether the training loop is built."""
        return isinstance(self._train_loop, BaseLoop)

    @property
    def is_testing(self) -> bool:
        """Whether the test loop is built."""
        return isinstance(self._test_loop, BaseLoop)

    @property
    def is_resuming(self) -> bool:
        """Whether the run resumes from a training checkpoint."""
        return bool(self._resume)

    @property
    def start_checkpoint(self) -> str | None:
        """Path of the checkpoint that the run starts from, or None."""
        return self._load_from

    @property
    def configured_seed(self) -> int | None:
        """Seed of the config, or None."""
        return self._randomness_cfg.get("seed")

    @property
    def shared_seed(self) -> int:
        """Seed common to all ranks; with ``randomness.diff_rank_seed``, each rank adds its rank to it."""
        return self.seed - (self.rank if self._randomness_cfg.get("diff_rank_seed") else 0)

    def set_start_checkpoint(self, path: str | None, resume: bool) -> None:
        """Set the checkpoint that the run starts from."""
        self._load_from, self._resume = path, resume

    def build_loop(self, kind: str) -> BaseLoop:
        """Build the loop 'train', 'val' or 'test', unless it is already built.

        Raises:
            ValueError: the config lacks a setting that the loop needs.
        """
        loop = getattr(self, f"_{kind}_loop")
        if loop is None:
            evaluates = "" if kind == "train" else f" and {kind}_evaluator"
            between = "" if kind == "train" else ","
            raise ValueError(f"the config lacks one of {kind}_dataloader{between or ' and'} {kind}_cfg{evaluates}")
        loop = getattr(self, f"build_{kind}_loop")(loop)
        setattr(self, f"_{kind}_loop", loop)
        return loop

    @property
    def has_validation(self) -> bool:
        """Whether the config defines a validation."""
        return self._val_loop is not None
