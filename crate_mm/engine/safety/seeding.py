"""Random states that depend on where the run is, and on nothing else."""

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from ...registry import HOOKS


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """Seed all random states from (seed, iteration, rank), so that a resumed run repeats what the uninterrupted one
    draws in the model, from any iteration on and without a stored state. (The data's draws are seeded by sample.)"""

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner)  # the loader's workers take theirs from here

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._seed(runner)

    @staticmethod
    def _seed(runner: Runner) -> None:
        set_random_seed(iteration_seed(runner.seed, runner.iter, get_rank()))


def iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """The seed of all random states at an iteration, counted from 0, of a process of a run."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0])
