"""A Runner's checkpoints: opened once, loaded whole or not at all, written and read back."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from torch import nn

from ...checkpoints import Checkpoint, CheckpointError
from ...checkpoints.fit import load_strict, transfer_backbone
from ...config import dump
from ...datasets.base import draws_of
from ...io.untrusted import without_secrets
from ...models.tasks.base import Task, task_of
from ..loading.classes import compare_with_config, say_other_recipe
from ..mmengine_private import RunnerState
from ..optim.sharded import ShardedOptimizer
from ..safety.consistency import check_same_checkpoint, open_on_all
from ..safety.finite import RunStoppedError
from .results import mark_unfinished, origin_of
from .start import StartPoint, check_optimizer_state, check_resumable
from .work_dir import BEST_FILE, set_aside
from .write import CheckpointWrite, build_checkpoint, to_cpu

MAX_FAILED_WRITES = 3


class CheckpointingRunner(RunnerState):
    """MMEngine's Runner, which begins with a checkpoint that is opened once, and goes on if one cannot be written.

    ``start`` is where it begins; ``initialized_from`` names the checkpoint that the run started from, also after a
    resume, or is None; ``tested`` is the checkpoint that is tested; ``user_cfg`` the config as the user has it.
    """

    start: StartPoint | None = None
    user_cfg: Config | None = None
    initialized_from: str | None = None
    origin: str | None = None  # the same checkpoint as the recipe names it, see origin_of
    tested: Checkpoint | None = None
    room_made: bool = False
    writing: CheckpointWrite | None = None  # the checkpoint that is on its way to the disk
    failed_writes: int = 0
    failed_at: int | None = None  # the iteration of the last write that failed
    unwritten: tuple[Path, Exception] | None = None  # the newest checkpoint to resume from, if it could not be written

    @property
    def task(self) -> Task:
        """The model, without the wrapper of several processes."""
        return task_of(self.model)

    def load_or_resume(self) -> None:
        if not self.is_training:
            self.set_start_checkpoint(self.start_checkpoint, resume=False)
        super().load_or_resume()
        if not self.is_training:
            self.write_user_config()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_train" and not self.room_made:  # whatever may refuse the run has had its say
            self.room_made = True
            if is_main_process():
                set_aside(self)
            self.write_user_config()

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", *_: Any, **__: Any) -> dict:
        """Load weights from a file of ours or of another code base; MMEngine's further arguments have no effect.

        To resume or to test, all are loaded or none. A run that starts from the file is initialised by it: all but the
        backbone starts anew, position embeddings are resized, and a table says what became of each parameter.

        Raises:
            CheckpointError: the file cannot be read, or is not of this model.
        """
        opened = self.start.opened if self.start else None
        checkpoint = open_on_all(filename, opened if opened and opened.path == str(filename) else None)
        contents = {"meta": checkpoint.meta, "state_dict": checkpoint.weights, **checkpoint.states}
        self.initialized_from = checkpoint.meta.get("initialized_from")
        self.origin = (checkpoint.meta.get("recipe") or {}).get("initialized_from", self.initialized_from)
        if self.is_resuming:
            check_resumable(self, checkpoint)
            self._restore_shuffle_version(filename, checkpoint.meta)
            self._warn_world_size_changed(filename, checkpoint.meta)
            say_other_recipe(self, checkpoint)
        elif self.is_training:
            taken = transfer_backbone(
                self.task, checkpoint, self.cfg.resize_positions, self.cfg.resize_patches, self.cfg.transfer_from
            )
            self.logger.info(f"initialised from {filename}:\n{taken.table()}")
            self.initialized_from, self.origin = without_secrets(filename), origin_of(checkpoint)
            contents = {"meta": checkpoint.meta, "state_dict": self.task.state_dict()}
        else:
            compare_with_config(self, checkpoint)
            self.tested = replace(checkpoint, weights={}, states={"message_hub": checkpoint.states.get("message_hub")})
        self.call_hook("after_load_checkpoint", checkpoint=contents)
        if self.is_resuming or not self.is_training:
            load_strict(self.task, replace(checkpoint, weights=contents["state_dict"]))
        check_same_checkpoint(self, filename, checkpoint.meta if self.is_resuming else {})
        self.start = self.start and self.start._replace(opened=None)  # its memory
        checkpoint.log_notes(self.logger.info)
        self.logger.info(f"loaded checkpoint {filename}")
        return contents

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint of training, with the optimizer's settings as this run's config has them.

        Raises:
            CheckpointError: the checkpoint holds weights only, or is of a run that took other steps.
        """
        settings = {"initial_lr", *self.cfg.optim_wrapper.optimizer}
        if self.param_schedulers:
            settings.discard("lr")  # it is where the schedule is
        configured = [dict(group) for group in self.optim_wrapper.param_groups]
        try:
            super().resume(filename, *args, **kwargs)
        except CheckpointError:
            raise
        except Exception as error:  # whatever MMEngine and PyTorch make of states that are none
            raise CheckpointError(
                f"{filename} is no checkpoint of training: {type(error).__name__}: {error}"
            ) from error
        check_optimizer_state(self.optim_wrapper.optimizer, configured, filename)
        for group, wanted in zip(self.optim_wrapper.param_groups, configured):
            group.update({key: wanted[key] for key in settings & wanted.keys()})
        self.seed_sampler()  # where the config has no seed, it is the checkpoint's now
        if self.iter >= self.max_iters:
            steps = self.cfg.train_cfg.get("max_steps")
            reached = f"step {self.iter}" if steps else f"epoch {self.epoch}"
            length = f"max_steps is {steps}" if steps else f"max_epochs is {self.max_epochs}"
            self.logger.warning(f"nothing is left to train: {filename} is of {reached}, train_cfg.{length}")

    def seed_sampler(self) -> None:
        """Let the order of the samples follow from the seed that checkpoints keep, unless the config gives another.

        With ``diff_rank_seed`` MMEngine leaves it to the sampler to draw one, which no checkpoint has.
        """
        own = (self.cfg.train_dataloader.get("sampler") or {}).get("seed")
        if own is None:
            self.train_dataloader.sampler.seed = self.shared_seed

    def _restore_shuffle_version(self, filename: str, meta: dict) -> None:
        """Let the sampler go on with the version of its draws that the checkpoint's run has.

        Raises:
            CheckpointError: there is no such version here, or the config asks for another.
        """
        sampler = self.train_dataloader.sampler
        version = meta.get("draws", 1)  # as long as there was one version, checkpoints did not name it
        if None in (version, draws_of(sampler)) or version == sampler.draws:
            return  # the same version, or one of the two runs has a sampler without versions
        own = (self.cfg.train_dataloader.get("sampler") or {}).get("draws")
        if own is not None:
            raise CheckpointError(
                f"{filename} is of a run with train_dataloader.sampler.draws={version}, this one has {own}: "
                "leave it out"
            )
        try:
            sampler.draws = version
        except ValueError as error:
            raise CheckpointError(f"{filename} cannot be resumed from: {error}") from error
        self.logger.info(
            f"{filename} is of a run with version {version} of the sampler's draws, and goes on with it: the same "
            "order and seeds as before"
        )

    def train(self) -> nn.Module:
        try:
            model = super().train()
        except KeyboardInterrupt:  # the second one, which ends at once
            raise
        except BaseException:
            try:
                self.finish_checkpoint()
            except Exception as error:  # the first error is the one that counts
                self.logger.error(f"{error}")
            raise
        self.finish_checkpoint()
        if self.unwritten:
            path, error = self.unwritten
            mark_unfinished(self.work_dir)
            raise RunStoppedError(
                f"the run's last checkpoint {path.name} could not be written ({error}): the earlier ones are intact, "
                "--resume trains again from the newest of them"
            ) from error
        return model

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        background: bool = False,
        then: Callable[[], None] | None = None,
        **_: Any,
    ) -> bool:
        """Write a checkpoint, as the first process does; all of them call it and hand it their part of the state.

        The one before is waited for. What is written is read back. Other arguments are MMEngine's.

        Args:
            meta: with the ``epoch`` and the ``iter`` that it is of; those of now if not given.
            background: copy the state, and let a thread write while training goes on, see ``finish_checkpoint``.
            then: called, on the first process alone, once it is written and read back.

        Returns:
            Whether this process knows of no failure: the run goes on without a checkpoint that cannot be written.

        Raises:
            RunStoppedError: none could be written for some time.
        """
        self.finish_checkpoint()
        optimizer = getattr(self.optim_wrapper, "optimizer", None)
        if save_optimizer and isinstance(optimizer, ShardedOptimizer):
            optimizer.consolidate_state_dict()
        if not is_main_process():
            return True
        meta = {"epoch": self.epoch, "iter": self.iter + 1, **(meta or {})}
        contents = build_checkpoint(self, meta, save_optimizer, save_param_scheduler)
        self.call_hook("before_save_checkpoint", checkpoint=contents)
        contents = to_cpu(contents, snapshot=background)
        self.writing = CheckpointWrite(contents, Path(out_dir) / filename, self.iter, then)
        if background:
            self.writing.start()
            return True
        self.writing.run()
        return self.finish_checkpoint()

    def finish_checkpoint(self, wait: bool = True) -> bool:
        """See to the end of a checkpoint that is being written: to its failure, or to what comes after it.

        Args:
            wait: for its end; else nothing happens before that.

        Returns:
            Whether nothing is known to have failed.

        Raises:
            RunStoppedError: none could be written for some time.
        """
        writing = self.writing
        if writing is None or (writing.is_running and not wait):
            return True
        writing.wait()
        self.writing = None
        if not re.fullmatch(BEST_FILE, writing.path.name):
            self.unwritten = (writing.path, writing.error) if writing.error else None
        if isinstance(writing.error, (OSError, CheckpointError)):
            self._record_failed_write(writing.error, writing.iteration)
            return False
        if writing.error:
            raise writing.error
        self.failed_writes, self.failed_at = 0, None
        if writing.then:
            writing.then()
        return True

    def _record_failed_write(self, error: Exception, iteration: int) -> None:
        if self.failed_at != iteration:  # an epoch's end has several to write
            self.failed_writes, self.failed_at = self.failed_writes + 1, iteration
        if self.failed_writes >= MAX_FAILED_WRITES:
            raise RunStoppedError(
                f"the checkpoint could not be written {self.failed_writes} times in a row ({error}): the earlier ones "
                "are intact, --resume goes on from the newest of them"
            ) from error
        self.logger.error(
            f"THE CHECKPOINT IS NOT WRITTEN: {error}. The earlier ones are intact; training goes on, and stops "
            f"when {MAX_FAILED_WRITES} in a row fail (so far {self.failed_writes})"
        )

    def _warn_world_size_changed(self, filename: str, meta: dict) -> None:
        if meta.get("processes", self.world_size) != self.world_size:
            self.logger.warning(
                f"{filename} was trained on {meta['processes']} processes and goes on on {self.world_size}: with "
                "the same batches, but sums in another order, so no longer identical to the last bit"
            )

    def write_user_config(self) -> None:
        """Write the user's config, not the prepared one, which holds for these processes only, to the work folder."""
        if self.user_cfg is None:
            return
        source = Path(self.user_cfg.filename or "config.py")
        target = Path(self.work_dir) / source.name
        if is_main_process() and target.resolve() != source.resolve():
            dumped = copy.deepcopy(self.user_cfg)
            dumped.update(resume=False, load_from=None, launcher="none")  # of this start, not of the recipe
            dump(dumped, target)

    def dump_config(self) -> None:
        """Nothing: ``write_user_config`` does it, once the files of an earlier run are aside."""
