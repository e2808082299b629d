"""Seed all random states at each iteration."""

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from ...registry import HOOKS


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """Seed all random states from (seed, iteration, rank).

    A run resumed at any iteration thus draws the same random numbers in the model as an uninterrupted run, without
    stored random states. (Data augmentation is seeded per sample.)
    """

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner)  # data-loader workers derive their seeds from this state

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._seed(runner)

    @staticmethod
    def _seed(runner: Runner) -> None:
        set_random_seed(iteration_seed(runner.seed, runner.iter, get_rank()))


def iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """Return the seed of all random states at an iteration, counted from 0, for a rank."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0])
