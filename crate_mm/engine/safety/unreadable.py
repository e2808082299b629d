"""Report unreadable images, count them over all ranks, and stop the run if there are too many."""

import logging
from functools import partialmethod

from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...datasets.base import dataset_of
from ...io.log import print_log
from ...io.untrusted import sanitized
from ...registry import HOOKS
from ..loop import TrainLoop
from .finite import RunStoppedError


@HOOKS.register_module()
class UnreadableImages(Hook):
    """Report each unreadable image once, by path, and stop the run if there are more than the dataset allows.

    Each rank reports its own images at once. In training, the images of all ranks are counted at each step.
    """

    def __init__(self) -> None:
        self.reported: dict[str, dict[int, str]] = {}  # stage -> position -> text
        self.num_synced = 0  # number of reported training images that all ranks know of

    @staticmethod
    def _limit(dataset) -> float:
        """Return the dataset's ``max_unreadable``; infinite if the dataset does not replace unreadable images."""
        return dataset_of(dataset).max_unreadable

    def _report_new(self, dataset, data_batch: dict, stage: str) -> None:
        if not isinstance(data_batch, dict) or "unreadable" not in data_batch:
            return
        reasons = data_batch["unreadable_reason"]
        if not any(reasons):  # avoids waiting for the positions, which may be on a GPU; the strings are on the host
            return
        reported = self.reported.setdefault(stage, {})
        for position, reason in sorted(zip(data_batch["unreadable"].tolist(), reasons)):
            if reason and position not in reported:
                reported[position] = f"{sanitized(dataset_of(dataset).describe(position))} ({sanitized(reason)})"
                # Of ranks above 0, MMEngine shows only errors on the console.
                print_log(
                    f"cannot read {stage} image {reported[position]}; another sample takes its place "
                    f"({len(reported)} of at most {self._limit(dataset)})",
                    logger="current",
                    level=logging.ERROR if get_rank() else logging.WARNING,
                )

    def _too_many(self, dataset, stage: str) -> RunStoppedError | None:
        reported = self.reported.get(stage, {})
        if len(reported) <= self._limit(dataset):
            return None
        listed = "\n  ".join(reported.values())
        return RunStoppedError(
            f"{len(reported)} {stage} images cannot be read, more than max_unreadable={self._limit(dataset)} "
            f"of the dataset:\n  {listed}"
        )

    def _gather(self, dataset, stage: str) -> RunStoppedError | None:
        """Merge the reports of all ranks; return the error if there are too many. All ranks call it."""
        reported = self.reported.setdefault(stage, {})
        for theirs in all_gather_object(reported):
            reported.update(theirs)
        return self._too_many(dataset, stage)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        dataset, loop = runner.train_dataloader.dataset, runner.train_loop
        self._report_new(dataset, data_batch, "train")
        if isinstance(loop, TrainLoop):
            loop.local_flags["unreadable"] = len(self.reported.get("train", ())) - self.num_synced
            if self.num_synced + sum(loop.all_flags["unreadable"]) > self._limit(dataset):
                loop.stop_error = self._gather(dataset, "train")

    def after_train_epoch(self, runner: Runner) -> None:
        error = self._gather(runner.train_dataloader.dataset, "train")
        self.num_synced = len(self.reported["train"])
        if isinstance(runner.train_loop, TrainLoop):
            runner.train_loop.local_flags["unreadable"] = 0
        if error:
            raise error

    after_train = after_train_epoch  # max_steps may end the run within an epoch

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None, stage: str = "val") -> None:
        dataset = getattr(runner, f"{stage}_dataloader").dataset
        self._report_new(dataset, data_batch, stage)
        if error := self._too_many(dataset, stage):
            raise error

    def after_val_epoch(self, runner: Runner, metrics=None, stage: str = "val") -> None:
        if error := self._gather(getattr(runner, f"{stage}_dataloader").dataset, stage):
            raise error

    after_test_iter = partialmethod(after_val_iter, stage="test")
    after_test_epoch = partialmethod(after_val_epoch, stage="test")
