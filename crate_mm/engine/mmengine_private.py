"""What we use of MMEngine under names that are its own: all of it is here, tried on MMEngine 0.10.7."""

from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler as ParamScheduler
from mmengine.runner import BaseLoop, Runner

__all__ = ["KNOWN_RULES", "ParamScheduler", "RunnerState", "trim"]

# Parts of a metric's name by which MMEngine knows whether more of it is better.
KNOWN_RULES = {
    **dict.fromkeys(CheckpointHook._default_greater_keys, "greater"),
    **dict.fromkeys(CheckpointHook._default_less_keys, "less"),
}


def trim(buffer: HistoryBuffer, keep: int) -> None:
    """Forget all but the last values of a logged scalar."""
    buffer._log_history = buffer._log_history[-keep:]
    buffer._count_history = buffer._count_history[-keep:]


class RunnerState(Runner):
    """MMEngine's Runner, whose state can be asked for."""

    @property
    def is_training(self) -> bool:
        """Whether the run is one of training: its loop is built."""
        return isinstance(self._train_loop, BaseLoop)

    @property
    def is_testing(self) -> bool:
        """Whether the test loop is built."""
        return isinstance(self._test_loop, BaseLoop)

    @property
    def is_resuming(self) -> bool:
        """Whether the run goes on from a checkpoint of training."""
        return bool(self._resume)

    @property
    def start_checkpoint(self) -> str | None:
        """The checkpoint that the run begins with, or None."""
        return self._load_from

    @property
    def configured_seed(self) -> int | None:
        """The seed as the config has it."""
        return self._randomness_cfg.get("seed")

    @property
    def shared_seed(self) -> int:
        """The seed of all processes; with ``randomness.diff_rank_seed`` each one's own is that and its rank."""
        return self.seed - (self.rank if self._randomness_cfg.get("diff_rank_seed") else 0)

    def set_start_checkpoint(self, path: str | None, resume: bool) -> None:
        """Let the run begin with a checkpoint."""
        self._load_from, self._resume = path, resume

    def build_loop(self, kind: str) -> BaseLoop:
        """Build the loop of 'train', 'val' or 'test', if that has not been done.

        Raises:
            ValueError: the config lacks a part that it needs.
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
        """Whether the config has a validation."""
        return self._val_loop is not None
