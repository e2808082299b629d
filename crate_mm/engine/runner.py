"""MMEngine's Runner for CPUs and GPUs, with verified checkpoints and a global batch size that the config sets."""

import copy
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.logging import MMLogger
from torch import nn

import crate_mm

from ..checkpoints import Checkpoint
from ..checkpoints.described import names_for
from ..config import BatchPlan, default_work_dir, expand_home, fill_from_data, require_model, resolve_config
from ..config.images import fill_images
from ..config.settings import guard_hooks
from ..io.log import sanitize_record
from ..models.tasks.base import freeze_untrained, task_of
from ..registry import RUNNERS
from ..torch_private import end_workers
from .checkpointing.hook import CheckpointHook
from .checkpointing.runner import CheckpointingRunner
from .checkpointing.start import StartPoint, find_start_point
from .loading.classes import check_same_classes, class_names, prepare_metrics
from .logs import drop_mmengine_noise
from .optim.schedule import WarmupCosineLR, scale_lr
from .optim.sharded import ShardedOptimizer, optimizer_name
from .optim.wrapper import training_dtype
from .parallel.blocks import check_residual_dtype, prepare_blocks
from .parallel.ddp import share_model
from .parallel.launch import dist_timeout, init_distributed
from .parallel.micro_batches import check_weights, is_split_invariant, probe_memory
from .progress import ProgressLine
from .safety.consistency import check_same_run, open_on_all
from .safety.lock import lock_work_dir, locked_work_dir
from .safety.process import ProcessSettings, check_temp_dir


@RUNNERS.register_module()
class Runner(CheckpointingRunner):
    """MMEngine's Runner with these differences.

    * It resolves the config (see ``resolve_config``), saves the user's own config beside the checkpoints, and logs a
      summary of the run before the first step.
    * Processes without a GPU use gloo and hold their models on the CPU.
    * A checkpoint is opened once, by ``open_checkpoint``, and loaded completely or not at all. A resume loads the
      newest intact checkpoint.
    * The model is a ``Task``, which checks that the data match it.
    """

    test_seconds: float = 0.0

    # Building -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_cfg(cls, cfg: Config) -> "Runner":
        init_distributed(cfg.get("launcher", "none"), dist_timeout(cfg))
        return cls._from_user_config(cfg)

    @classmethod
    def _from_user_config(cls, cfg: Config, checkpoint: Checkpoint | None = None) -> "Runner":
        require_model(cfg)
        cfg = copy.deepcopy(cfg)
        with names_for(checkpoint):
            fill_images(cfg)
        cfg, notes = fill_from_data(cfg, training=bool(cfg.get("train_dataloader")))
        resolved = resolve_config(cfg)
        resolved.resume = bool(resolved.get("resume"))
        runner = cls.from_resolved(resolved, checkpoint)
        runner.user_cfg = cfg
        for note in notes:
            runner.logger.info(note)
        for name, effect in guard_hooks(resolved)[1].items():
            runner.logger.warning(f"the guard {name} is off: {effect}")
        return runner

    @classmethod
    def for_training(cls, cfg: Config, checkpoint: Checkpoint | None = None) -> "Runner":
        """Return a runner that is ready to train and holds the lock of its work directory.

        Args:
            cfg: a user's config.
            checkpoint: the start checkpoint, if it is already open.

        Raises:
            ValueError: the work directory is in use, or as in ``build_for_training``. The refused run leaves no file.
        """
        expand_home(cfg)
        cfg.work_dir = cfg.get("work_dir") or default_work_dir(cfg)
        init_distributed(cfg.get("launcher", "none"), dist_timeout(cfg))
        with locked_work_dir(cfg.work_dir):
            start = find_start_point(cfg, cfg.work_dir, checkpoint)
            runner = cls._from_user_config(cfg, checkpoint)
            runner.start = start
            with runner.in_process_settings():
                runner.build_for_training()
        return runner

    @classmethod
    def for_testing(cls, cfg: Config, checkpoint: Checkpoint | None = None) -> "Runner":
        """Return a runner that is ready to test; arguments and errors as for ``build_for_testing``."""
        init_distributed(cfg.get("launcher", "none"), dist_timeout(cfg))
        runner = cls._from_user_config(cfg, checkpoint)
        runner.build_for_testing(checkpoint)
        return runner

    @property
    def headline(self) -> tuple[str, str]:
        """The metric that selects the best epoch, and whether 'greater' or 'less' is better."""
        hook = next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)
        return hook.headline(self) if hook else self.task.headline

    @property
    def val_dtype(self) -> str:
        """The dtype of validation: ``val_dtype`` of the config, by default the training dtype."""
        return self.cfg.get("val_dtype") or training_dtype(self.cfg.get("optim_wrapper"))

    def setup_env(self, env_cfg: dict) -> None:
        if any((self.cfg.get(f"{split}_dataloader") or {}).get("num_workers") for split in ("train", "val", "test")):
            check_temp_dir()
        before = ProcessSettings()
        super().setup_env(env_cfg)
        # By default, PyTorch allows TF32 in convolutions, but not in matrix products.
        # Do not set cuda.matmul.allow_tf32 instead: if a program has set the precision "high" before, PyTorch then
        # raises an error when torch.compile reads the precision.
        torch.set_float32_matmul_precision("high" if self.cfg.get("tf32") else "highest")
        torch.backends.cudnn.allow_tf32 = bool(self.cfg.get("tf32"))
        self.process_settings = ProcessSettings()
        before.apply()

    def set_randomness(self, *args: Any, **kwargs: Any) -> None:
        with self.in_process_settings():
            super().set_randomness(*args, **kwargs)
            self.process_settings = ProcessSettings()

    @contextmanager
    def in_process_settings(self) -> Iterator[None]:
        """Apply the config's ``env_cfg``, ``tf32`` and determinism to the process; restore the old settings at exit."""
        before = ProcessSettings()
        self.process_settings.apply()
        try:
            yield
        finally:
            before.apply()

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        model = super().build_model(model)
        freeze_untrained(task_of(model))
        return model

    def build_for_training(self) -> None:
        """Build everything that training needs, check that it is consistent, and log a summary.

        Raises:
            ValueError: a part of the config does not build, or the data does not match the task.
        """
        self.start = self.start or find_start_point(self.user_cfg or self.cfg, self.work_dir)
        self.set_start_checkpoint(self.start.path, self.start.resume)
        for message in self.start.damaged:
            self.logger.warning(message)
        if (self.user_cfg or self.cfg).get("resume") and not self.start.resume:
            self.logger.info(f"nothing to resume in {self.work_dir}: starting from the beginning")
        self.build_loop("train")
        self.seed_sampler()
        self.task.check_data(self.train_dataloader.dataset, "train")
        if self.has_validation:
            self.build_loop("val")
            if self.task.uses_labels:
                names = class_names(self.train_dataloader), class_names(self.val_dataloader)
                check_same_classes("training data", names[0], "validation data", names[1])
            self.build_for_validation()
        validation = self.val_dataloader if self.has_validation else None
        check_same_run(self, training=self.train_dataloader, validation=validation)
        self.choose_micro_batches()
        if (self.cfg.get("ddp") or {}).get("static_graph") and self.train_loop.micro_batches > 1:
            raise ValueError(
                f"ddp.static_graph does not support the {self.train_loop.micro_batches} micro-batches of a step: leave "
                "it out, or set max_batch_per_device to the whole batch of a device"
            )
        scaled = scale_lr(self.optim_wrapper, self.auto_scale_lr, self.cfg.global_batch_size)
        self.auto_scale_lr = None
        try:
            self.optim_wrapper = self.build_optim_wrapper(scaled)
        except TypeError as error:
            raise ValueError(f"could not build the config's optim_wrapper: {error}") from error
        check_weights(self.plan, self.task, self.train_loop, self.optim_wrapper)
        if self.cfg.get("zero") and self.distributed:
            settings = {k: v for k, v in scaled["optimizer"].items() if k != "type"}
            self.optim_wrapper.optimizer = ShardedOptimizer(
                self.optim_wrapper.optimizer, settings, dist_timeout(self.cfg)
            )
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        if self.task.freeze_backbone and not self.start_checkpoint:
            self.logger.warning("the frozen backbone has random weights: load weights with --load-from")
        self.logger.info(self.describe())

    @property
    def plan(self) -> BatchPlan:
        """Division of a step's batch among processes and micro-batches."""
        return BatchPlan(self.cfg.global_batch_size, self.world_size, getattr(self.train_loop, "micro_batches", 1))

    def choose_micro_batches(self) -> None:
        """Choose and log the number of micro-batches by free GPU memory, unless the config sets a maximum batch.

        Raises:
            ValueError: not even one sample fits, or only one fits and per-rank batch sizes differ.
        """
        if get_device() != "cuda" or self.cfg.get("max_batch_per_device") is not None:
            return
        loader = self.train_dataloader
        if not is_split_invariant(self.task):
            self.logger.info(
                f"max_batch_per_device is not set: the {loader.batch_size} samples of a device are not split, because "
                "micro-batches would change the steps of this model"
            )
            return

        def batch_of(size: int) -> dict:
            return loader.collate_fn([loader.dataset[index % len(loader.dataset)] for index in range(size)])

        count = self._resumed_micro_batches()
        if count:
            message = f"a step has {count} micro-batches, as before the resume"
        else:
            dtype = training_dtype(self.cfg.optim_wrapper)
            count, message = probe_memory(self.task, batch_of, self.plan.batch_sizes, dtype)
        # All ranks need the same number, but other programs may use memory of one GPU.
        largest = torch.tensor(count, device="cuda")
        all_reduce(largest, "max")
        self.train_loop.micro_batches = self.optim_wrapper["accumulative_counts"] = largest.item()
        self.message_hub.update_info("micro_batches", largest.item())
        suffix = "" if largest == count else f"; using {largest.item()}, which another process needs"
        self.logger.info(f"{message}{suffix}")

    def _resumed_micro_batches(self) -> int | None:
        """Return the number of micro-batches before the resume; None if there is none or it does not fit the batch.

        A different number would change the random draws of the model.
        """
        if not self.start.resume:
            return None
        checkpoint = open_on_all(self.start.path, self.start.checkpoint)
        self.start = self.start._replace(checkpoint=checkpoint)
        count, batch_sizes = checkpoint.info.get("micro_batches"), self.plan.batch_sizes
        if not isinstance(count, int) or not 0 < count <= batch_sizes[0]:
            return None
        same_world_size = checkpoint.meta.get("processes") == self.world_size
        return count if same_world_size or not any(size % count for size in batch_sizes) else None

    def build_for_validation(self) -> None:
        """Build the validation loop; raise ``ValueError`` if it does not build or the data does not match the task."""
        self.build_loop("val")
        self.task.check_data(self.val_dataloader.dataset, "val")
        prepare_metrics(self.val_evaluator, self.val_dataloader.dataset, self.task)

    def build_for_testing(self, checkpoint: Checkpoint | None = None) -> None:
        """Build the test loop.

        Args:
            checkpoint: the checkpoint that ``load_from`` names, if it is already open.

        Raises:
            ValueError: the loop does not build, or the data does not match the task or the checkpoint.
        """
        self.start = StartPoint(self.start_checkpoint, False, checkpoint, [])
        self.build_loop("test")
        if checkpoint is not None and self.task.uses_labels:
            names = class_names(self.test_dataloader)
            check_same_classes(checkpoint.path, checkpoint.class_names, "test data", names)
        self.task.check_data(self.test_dataloader.dataset, "test")
        check_same_run(self, test=self.test_dataloader)
        prepare_metrics(self.test_evaluator, self.test_dataloader.dataset, self.task)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        recompute = self.cfg.get("activation_checkpointing")
        residual = self.cfg.get("residual_dtype")
        if self.cfg.get("train_dataloader"):
            check_residual_dtype(residual, {training_dtype(self.cfg.get("optim_wrapper")), self.val_dtype})
        prepare_blocks(model, self.cfg.get("compile_blocks"), recompute is True, residual)
        if isinstance(recompute, bool):
            self.cfg.activation_checkpointing = None  # MMEngine expects module names under this key
        if model_wrapper_cfg or not self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        return share_model(model, self.cfg)

    # Running ------------------------------------------------------------------------------------------------------

    def train(self) -> nn.Module:
        lock = lock_work_dir(self.work_dir)
        try:
            with self.in_process_settings():
                if not self.is_training:
                    self.build_for_training()
                return super().train()
        finally:
            self.close_progress()
            if lock:
                lock.release()

    def val(self) -> dict[str, float]:
        self.build_for_validation()
        try:
            with self.in_process_settings(), self.in_val_dtype():
                return super().val()
        finally:
            self.close_progress()
            end_workers(self.val_dataloader)

    def test(self) -> dict[str, float]:
        if not self.is_testing:
            self.build_for_testing()
        start = time.perf_counter()
        try:
            with self.in_process_settings():
                metrics = super().test()
        finally:
            self.close_progress()
            end_workers(self.test_dataloader)
        self.test_seconds = time.perf_counter() - start
        return metrics

    def close_progress(self) -> None:
        """Remove the progress line from the terminal, so that it does not mix with an error message."""
        for hook in self.hooks:
            if isinstance(hook, ProgressLine):
                hook.close()

    def use_autocast(self, dtype: str) -> None:
        """Evaluate in mixed precision: MMEngine's loops support fp16 on GPUs only and disable any other autocast."""
        self.task.eval_dtype = getattr(torch, dtype)

    @contextmanager
    def in_val_dtype(self) -> Iterator[None]:
        """Evaluate in ``val_dtype`` inside this context."""
        before = self.task.eval_dtype
        if self.val_dtype != "float32":
            self.use_autocast(self.val_dtype)
        try:
            yield
        finally:
            self.task.eval_dtype = before

    # Logging ------------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Return a summary of the training: batch, steps, optimizer, learning rate and precision."""
        loader = self.train_dataloader
        group = self.optim_wrapper.param_groups[0]
        lr = float(group.get("initial_lr", group["lr"]))
        schedules = [s for s in self.param_schedulers or () if isinstance(s, WarmupCosineLR)]
        warmup = f" after {schedules[0].warmup:.0f} steps of warm-up" if schedules else ""
        scaling, scaled, precision = self.cfg.get("auto_scale_lr") or {}, "", ""
        if scaling.get("enable"):
            base = self.cfg.optim_wrapper.optimizer.lr
            scaled = f" ({base:g} x {self.cfg.global_batch_size} / {scaling['base_batch_size']})"
        dtype = training_dtype(self.cfg.optim_wrapper)
        if {dtype, self.val_dtype if self.has_validation else dtype} != {"float32"}:
            precision = f"; trained in {dtype}, validated in {self.val_dtype}"
        return (
            f"effective batch {self.plan} {self.task.unit} of {len(loader.dataset)}; {len(loader)} steps an epoch, "
            f"{self.max_iters / len(loader):.6g} epochs, {self.max_iters} steps; "
            f"{optimizer_name(self.optim_wrapper.optimizer)}, learning rate {lr:g}{scaled}{warmup}{precision}"
        )

    def _log_env(self, env_cfg: dict) -> None:
        """Log versions, devices, seed and work directory in one line; the config is in the work directory."""
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        self.logger.info(
            f"Python {platform.python_version()}, PyTorch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"crate_mm {crate_mm.__version__}; {self.world_size} x {device}; seed {self.seed}; "
            f"{self.experiment_name} in {self.work_dir}"
        )

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        logger.addFilter(drop_mmengine_noise)
        logger.addFilter(sanitize_record)
        return logger

    def get_hooks_info(self) -> str:
        """Return the hooks in the order of their priority, in one line (MMEngine: about eighty lines)."""
        return "  " + ", ".join(type(hook).__name__ for hook in self.hooks)
