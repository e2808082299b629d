"""Images that cannot be read: reported, counted over all processes, and too many of them stop the run."""

import logging

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
    """Report each unreadable image once, by path, and stop the run when there are more than the dataset allows.

    Each process reports its own as they come. In training, all together are counted at each step.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[int, str]] = {}  # by stage, by position: what was reported
        self.known_to_all = 0  # how many of the training images that were found

    @staticmethod
    def _most(dataset) -> float:
        """How many images of a dataset may be unreadable; one that replaces none has no such number."""
        return dataset_of(dataset).max_unreadable

    def _look(self, dataset, data_batch: dict, stage: str) -> None:
        if not isinstance(data_batch, dict) or "unreadable" not in data_batch:
            return
        reasons = data_batch["unreadable_reason"]
        if not any(reasons):  # strings are on the host; the positions may be on a GPU, which would be waited for
            return
        found = self.found.setdefault(stage, {})
        for position, reason in sorted(zip(data_batch["unreadable"].tolist(), reasons)):
            if reason and position not in found:
                found[position] = f"{sanitized(dataset_of(dataset).describe(position))} ({sanitized(reason)})"
                # On the console MMEngine shows of other ranks than the first only errors.
                print_log(
                    f"cannot read {stage} image {found[position]}; another sample takes its place "
                    f"({len(found)} of at most {self._most(dataset)})",
                    logger="current",
                    level=logging.ERROR if get_rank() else logging.WARNING,
                )

    def _too_many(self, dataset, stage: str) -> RunStoppedError | None:
        found = self.found.get(stage, {})
        if len(found) <= self._most(dataset):
            return None
        listed = "\n  ".join(found.values())
        return RunStoppedError(
            f"{len(found)} {stage} images cannot be read, more than max_unreadable={self._most(dataset)} "
            f"of the dataset:\n  {listed}"
        )

    def _gather(self, dataset, stage: str) -> RunStoppedError | None:
        """Let all processes know what each has found; return the error if that is too many. All of them call it."""
        found = self.found.setdefault(stage, {})
        for other in all_gather_object(found):
            found.update(other)
        return self._too_many(dataset, stage)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        dataset, loop = runner.train_dataloader.dataset, runner.train_loop
        self._look(dataset, data_batch, "train")
        if isinstance(loop, TrainLoop):
            loop.local_flags["unreadable"] = len(self.found.get("train", ())) - self.known_to_all
            if self.known_to_all + sum(loop.all_flags["unreadable"]) > self._most(dataset):
                loop.stop_error = self._gather(dataset, "train")

    def after_train_epoch(self, runner: Runner) -> None:
        error = self._gather(runner.train_dataloader.dataset, "train")
        self.known_to_all = len(self.found["train"])
        if isinstance(runner.train_loop, TrainLoop):
            runner.train_loop.local_flags["unreadable"] = 0
        if error:
            raise error

    after_train = after_train_epoch  # the last epoch of a run may be cut

    def _after_iter(self, dataset, data_batch: dict, stage: str) -> None:
        self._look(dataset, data_batch, stage)
        error = self._too_many(dataset, stage)
        if error:
            raise error

    def _after_epoch(self, dataset, stage: str) -> None:
        error = self._gather(dataset, stage)
        if error:
            raise error

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._after_iter(runner.val_dataloader.dataset, data_batch, "val")

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self._after_epoch(runner.val_dataloader.dataset, "val")

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._after_iter(runner.test_dataloader.dataset, data_batch, "test")

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self._after_epoch(runner.test_dataloader.dataset, "test")
