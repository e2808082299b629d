"""Load and save checkpoints in MMEngine's Runner.

Loading is strict: every weight is loaded, or CheckpointError is raised and the model is unchanged. Only a transfer
loads the backbone alone (``transfer_backbone``). Every file is read back and verified after it is written.
"""

import copy
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from torch import nn

from ...checkpoints import Checkpoint, CheckpointError
from ...checkpoints.described import names_for
from ...checkpoints.fit import load_strict, transfer_backbone
from ...config import dump
from ...datasets.base import draws_of
from ...io.untrusted import without_secrets
from ...models.tasks.base import Task, task_of
from ..loading.classes import compare_with_config, warn_other_recipe
from ..mmengine_private import RunnerState
from ..optim.sharded import ShardedOptimizer
from ..safety.consistency import check_same_checkpoint, open_on_all
from ..safety.finite import RunStoppedError
from .results import mark_unfinished, origin_of
from .start import StartPoint, check_optimizer_state, check_resumable
from .work_dir import BEST_FILE, set_aside
from .write import CheckpointWrite, build_checkpoint, to_cpu

MAX_FAILED_WRITES = 3
# The open checkpoint from which the config may have taken its model; set while a Runner is built.
_model_source: ContextVar[Checkpoint | None] = ContextVar("model_source", default=None)


class CheckpointingRunner(RunnerState):
    """MMEngine Runner with verified checkpoints that survives failed writes.

    The start checkpoint is opened once and shared by all consumers. A failed write is logged and training continues;
    the ``MAX_FAILED_WRITES``-th failure in a row raises RunStoppedError. Earlier checkpoints stay intact.

    Attributes:
        start: checkpoint to start from and whether to resume; None until it is resolved.
        user_cfg: config as the user wrote it, before ``resolve_config``.
        initialized_from: path of the checkpoint that initialized the backbone, kept across resumes, or None.
        origin: name of this checkpoint in the recipe, see ``origin_of``.
        tested: checkpoint under test, without its weights.
        pending_write: the write in progress, or None.
        failed_writes: failed writes in a row; several failures at one iteration count once.
        failed_at: iteration of the last failed write, or None.
        unwritten: path and error of the newest checkpoint to resume from, if its write failed.
    """

    start: StartPoint | None = None
    user_cfg: Config | None = None
    initialized_from: str | None = None
    origin: str | None = None
    tested: Checkpoint | None = None
    pending_write: CheckpointWrite | None = None
    failed_writes: int = 0
    failed_at: int | None = None
    unwritten: tuple[Path, Exception] | None = None
    _work_dir_prepared: bool = False

    @classmethod
    def from_resolved(cls, cfg: Config, checkpoint: Checkpoint | None) -> "CheckpointingRunner":
        """Return a Runner of a resolved config, which may have taken its model from an open checkpoint."""
        token = _model_source.set(checkpoint)  # MMEngine passes only the config on to build_model
        try:
            return super().from_cfg(cfg)
        finally:
            _model_source.reset(token)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        with names_for(_model_source.get()):
            return super().build_model(model)

    @property
    def task(self) -> Task:
        """The model without its DistributedDataParallel wrapper."""
        return task_of(self.model)

    def load_or_resume(self) -> None:
        if not self.is_training:
            self.set_start_checkpoint(self.start_checkpoint, resume=False)
        super().load_or_resume()
        if not self.is_training:
            self.write_user_config()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_train" and not self._work_dir_prepared:  # every check of the run has passed
            self._work_dir_prepared = True
            if is_main_process():
                set_aside(self)
            self.write_user_config()

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", *_: Any, **__: Any) -> dict:
        """Load weights from a file of crate_mm or of third-party code; MMEngine's other arguments have no effect.

        Resuming and testing load all weights or none. A new run transfers only the backbone of the file: position
        embeddings are resized, and a table in the log lists every parameter.

        Raises:
            CheckpointError: the file cannot be read, or does not match this model.
        """
        checkpoint = self.start.checkpoint if self.start else None
        checkpoint = open_on_all(filename, checkpoint if checkpoint and checkpoint.path == str(filename) else None)
        contents = {"meta": checkpoint.meta, "state_dict": checkpoint.weights, **checkpoint.states}
        self.initialized_from = checkpoint.meta.get("initialized_from")
        self.origin = (checkpoint.meta.get("recipe") or {}).get("initialized_from", self.initialized_from)
        if self.is_resuming:
            check_resumable(self, checkpoint)
            self._restore_shuffle_version(filename, checkpoint.meta)
            self._warn_world_size_changed(filename, checkpoint.meta)
            warn_other_recipe(self, checkpoint)
        elif self.is_training:
            self.transfer(checkpoint)
            self.initialized_from, self.origin = without_secrets(filename), origin_of(checkpoint)
            contents = {"meta": checkpoint.meta, "state_dict": self.task.state_dict()}
        else:
            compare_with_config(self, checkpoint)
            self.tested = replace(checkpoint, weights={}, states={"message_hub": checkpoint.states.get("message_hub")})
        self.call_hook("after_load_checkpoint", checkpoint=contents)
        if self.is_resuming or not self.is_training:
            load_strict(self.task, replace(checkpoint, weights=contents["state_dict"]))
        check_same_checkpoint(self, filename, checkpoint.meta if self.is_resuming else {})
        self.start = self.start and self.start._replace(checkpoint=None)  # frees its memory
        checkpoint.log_notes(self.logger.info)
        self.logger.info(f"loaded checkpoint {filename}")
        return contents

    def transfer(self, checkpoint: Checkpoint) -> None:
        """Initialize the backbone from a checkpoint, and log a table of its parameters.

        Raises:
            CheckpointError: the checkpoint does not match this model.
        """
        report = transfer_backbone(
            self.task, checkpoint, self.cfg.resize_positions, self.cfg.resize_patches, self.cfg.transfer_from
        )
        self.logger.info(f"initialized the backbone from {checkpoint.path}:\n{report.table()}")

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a training checkpoint; the optimizer's settings are taken from this run's config.

        Raises:
            CheckpointError: the checkpoint has weights only, or its run does not match this run.
        """
        settings = {"initial_lr", *self.cfg.optim_wrapper.optimizer}
        # Schedules restore the settings that they control: the learning rate, and in some runs the weight decay.
        settings -= {getattr(schedule, "param_name", "lr") for schedule in self.param_schedulers or ()}
        configured = [dict(group) for group in self.optim_wrapper.param_groups]
        try:
            super().resume(filename, *args, **kwargs)
        except CheckpointError:
            raise
        except Exception as error:  # MMEngine and PyTorch raise exceptions of any type on malformed states.
            raise CheckpointError(
                f"{filename} is not a training checkpoint: {type(error).__name__}: {error}"
            ) from error
        check_optimizer_state(self.optim_wrapper.optimizer, configured, filename)
        for group, before in zip(self.optim_wrapper.param_groups, configured):
            group.update({key: before[key] for key in settings & before.keys()})
        self.seed_sampler()  # without a seed in the config, the checkpoint's seed applies
        if self.iter >= self.max_iters:
            steps = self.cfg.train_cfg.get("max_steps")
            reached = f"step {self.iter}" if steps else f"epoch {self.epoch}"
            length = f"max_steps is {steps}" if steps else f"max_epochs is {self.max_epochs}"
            self.logger.warning(f"nothing is left to train: {filename} is of {reached}, and train_cfg.{length}")

    def seed_sampler(self) -> None:
        """Seed the sampler with the run's seed, which checkpoints store, unless the config sets a sampler seed.

        With ``diff_rank_seed``, MMEngine lets the sampler draw a seed, which no checkpoint stores.
        """
        config_seed = (self.cfg.train_dataloader.get("sampler") or {}).get("seed")
        if config_seed is None:
            self.train_dataloader.sampler.seed = self.shared_seed

    def _restore_shuffle_version(self, filename: str, meta: dict) -> None:
        """Set the sampler's shuffle version (``draws``) to the checkpoint's.

        Raises:
            CheckpointError: this version is unknown, or the config requests another version.
        """
        sampler = self.train_dataloader.sampler
        version = meta.get("draws", 1)  # checkpoints of version 1 do not store it
        if None in (version, draws_of(sampler)) or version == sampler.draws:
            return  # same version, or a sampler without versions
        config_draws = (self.cfg.train_dataloader.get("sampler") or {}).get("draws")
        if config_draws is not None:
            raise CheckpointError(
                f"{filename} is of a run with train_dataloader.sampler.draws={version}, but this run has "
                f"{config_draws}: leave it out"
            )
        try:
            sampler.draws = version
        except ValueError as error:
            raise CheckpointError(f"{filename} cannot be resumed from: {error}") from error
        self.logger.info(
            f"{filename} is of a run with version {version} of the sampler's draws; the resumed run uses this version "
            "too, with the same order and seeds"
        )

    def train(self) -> nn.Module:
        try:
            model = super().train()
        except KeyboardInterrupt:  # the second Ctrl-C: end at once
            raise
        except BaseException:
            try:
                self.finish_checkpoint()
            except Exception as error:  # the first error is raised
                self.logger.error(f"{error}")
            raise
        self.finish_checkpoint()
        if self.unwritten:
            path, error = self.unwritten
            mark_unfinished(self.work_dir)
            raise RunStoppedError(
                f"the run's last checkpoint {path.name} could not be written ({error}): the earlier checkpoints are "
                "intact; --resume repeats the training after the newest of them"
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
        on_success: Callable[[], None] | None = None,
        **_: Any,
    ) -> bool:
        """Write a checkpoint on rank 0 and verify it. All ranks call it, since the optimizer state may be sharded.

        The previous write is awaited first. Arguments that are not listed here are MMEngine's.

        Args:
            meta: ``epoch`` and ``iter`` of the checkpoint (default: the current ones).
            background: copy the state and write it in a thread while training continues, see ``finish_checkpoint``.
            on_success: called on rank 0 only, after the file is written and verified.

        Returns:
            False if this rank knows of a failed write; the run continues without this checkpoint.

        Raises:
            RunStoppedError: ``MAX_FAILED_WRITES`` writes in a row failed.
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
        contents = to_cpu(contents, copy=background)
        self.pending_write = CheckpointWrite(contents, Path(out_dir) / filename, self.iter, on_success)
        if background:
            self.pending_write.start()
            return True
        self.pending_write.run()
        return self.finish_checkpoint()

    def finish_checkpoint(self, wait: bool = True) -> bool:
        """Handle the result of the pending write: record its failure, or call its ``on_success``.

        Args:
            wait: whether to wait for a running write; if False, return at once.

        Returns:
            False if the write failed.

        Raises:
            RunStoppedError: ``MAX_FAILED_WRITES`` writes in a row failed.
        """
        write = self.pending_write
        if write is None or (write.is_running and not wait):
            return True
        write.wait()
        self.pending_write = None
        if not re.fullmatch(BEST_FILE, write.path.name):
            self.unwritten = (write.path, write.error) if write.error else None
        if isinstance(write.error, (OSError, CheckpointError)):
            self._record_failed_write(write.error, write.iteration)
            return False
        if write.error:
            raise write.error
        self.failed_writes, self.failed_at = 0, None
        if write.on_success:
            write.on_success()
        return True

    def _record_failed_write(self, error: Exception, iteration: int) -> None:
        if self.failed_at != iteration:  # the end of an epoch may write several checkpoints
            self.failed_writes, self.failed_at = self.failed_writes + 1, iteration
        if self.failed_writes >= MAX_FAILED_WRITES:
            raise RunStoppedError(
                f"the checkpoint could not be written {self.failed_writes} times in a row ({error}): the earlier "
                "checkpoints are intact; --resume continues from the newest of them"
            ) from error
        self.logger.error(
            f"could not write the checkpoint: {error}. The earlier checkpoints are intact; training continues and "
            f"stops after {MAX_FAILED_WRITES} failures in a row (so far {self.failed_writes})"
        )

    def _warn_world_size_changed(self, filename: str, meta: dict) -> None:
        if meta.get("processes", self.world_size) != self.world_size:
            self.logger.warning(
                f"{filename} was trained on {meta['processes']} processes and resumes on {self.world_size}: the "
                "batches are the same, but sums are taken in another order, so results are no longer bit-identical"
            )

    def write_user_config(self) -> None:
        """Write the user's config to the work directory: the resolved config applies to these processes only."""
        if self.user_cfg is None:
            return
        source = Path(self.user_cfg.filename or "config.py")
        target = Path(self.work_dir) / source.name
        if is_main_process() and target.resolve() != source.resolve():
            cfg = copy.deepcopy(self.user_cfg)
            cfg.update(resume=False, load_from=None, launcher="none")  # options of this launch, not of the recipe
            dump(cfg, target)

    def dump_config(self) -> None:
        """Do nothing: ``write_user_config`` writes the config after another run's files have been moved."""
