"""MMEngine's Runner, on any device, with a batch that is a recipe and checkpoints that are checked."""

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
from ..config import BatchPlan, default_work_dir, expand_home, resolve_config
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
from .parallel.blocks import prepare_blocks
from .parallel.ddp import share_model
from .parallel.launch import dist_timeout, init_distributed
from .parallel.micro_batches import check_weights, is_split_invariant, probe_memory
from .progress import ProgressLine
from .safety.consistency import check_same_run, open_on_all
from .safety.lock import lock_work_dir
from .safety.process import ProcessSettings, check_temp_dir


@RUNNERS.register_module()
class Runner(CheckpointingRunner):
    """MMEngine's Runner with these differences.

    * It prepares the config (see ``resolve_config``), keeps the user's own beside the checkpoints, and says at the start what
      it is going to do.
    * Processes without a GPU talk through gloo and hold their models on the CPU.
    * A checkpoint is opened once, by ``open_checkpoint``, and loaded whole or not at all; a resume takes the newest
      that is intact.
    * The model is a ``Task``, which says whether it and the data go together.
    """

    test_seconds: float = 0.0

    # Building -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_cfg(cls, cfg: Config) -> "Runner":
        init_distributed(cfg.get("launcher", "none"), dist_timeout(cfg))
        return cls._from_user_config(cfg)

    @classmethod
    def _from_user_config(cls, cfg: Config) -> "Runner":
        ready = resolve_config(cfg)
        ready.resume = bool(ready.get("resume"))
        runner = super().from_cfg(ready)
        runner.user_cfg = cfg
        for name, lost in guard_hooks(ready)[1].items():
            runner.logger.warning(f"the guard {name} is off: {lost}")
        return runner

    @classmethod
    def for_training(cls, cfg: Config, opened: Checkpoint | None = None) -> "Runner":
        """A runner that is ready to train, in a work folder that is its own from before the first file is written.

        Args:
            cfg: a user's config.
            opened: the checkpoint that the run begins with, if it is open already.

        Raises:
            ValueError: the work folder is in use, or as ``build_for_training``.
        """
        expand_home(cfg)
        cfg.work_dir = cfg.get("work_dir") or default_work_dir(cfg)
        init_distributed(cfg.get("launcher", "none"), dist_timeout(cfg))
        lock_work_dir(cfg.work_dir)
        start = find_start_point(cfg, cfg.work_dir, opened)
        runner = cls._from_user_config(cfg)
        runner.start = start
        with runner.in_process_settings():
            runner.build_for_training()
        return runner

    @property
    def headline(self) -> tuple[str, str]:
        """The metric that decides which epoch is the best, and whether 'greater' or 'less' is better."""
        hook = next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)
        return hook.headline(self) if hook else self.task.headline

    @property
    def val_dtype(self) -> str:
        """The precision of validation: that of training, unless the config has another."""
        return self.cfg.get("val_dtype") or training_dtype(self.cfg.get("optim_wrapper"))

    def setup_env(self, env_cfg: dict) -> None:
        if any((self.cfg.get(f"{split}_dataloader") or {}).get("num_workers") for split in ("train", "val", "test")):
            check_temp_dir()
        before = ProcessSettings()
        super().setup_env(env_cfg)
        # TF32 exists on GPUs only. PyTorch allows it in convolutions by default, but not in matrix products.
        # The precision is set as a whole: with allow_tf32 = False after a program's own "high", PyTorch refuses to
        # read the precision, and torch.compile reads it.
        torch.set_float32_matmul_precision("high" if self.cfg.get("tf32") else "highest")
        torch.backends.cudnn.allow_tf32 = bool(self.cfg.get("tf32"))
        self.process_settings = ProcessSettings()
        before.apply()

    def set_randomness(self, *args: Any, **kwargs: Any) -> None:
        before = ProcessSettings()
        self.process_settings.apply()
        super().set_randomness(*args, **kwargs)
        self.process_settings = ProcessSettings()
        before.apply()

    @contextmanager
    def in_process_settings(self) -> Iterator[None]:
        """Let the config's ``env_cfg``, ``tf32`` and determinism hold for the process, and no longer than for this."""
        before = ProcessSettings()
        self.process_settings.apply()
        try:
            yield
        finally:
            before.apply()

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        built = super().build_model(model)
        freeze_untrained(task_of(built))
        return built

    def build_for_training(self) -> None:
        """Build everything that training needs, check that it fits together, and say what it is.

        Raises:
            ValueError: a part of the config does not build, or the data is not what the task wants.
        """
        self.start = self.start or find_start_point(self.user_cfg or self.cfg, self.work_dir)
        self.set_start_checkpoint(self.start.path, self.start.resume)
        for sentence in self.start.damaged:
            self.logger.warning(sentence)
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
        self.fit_into_memory()
        if (self.cfg.get("ddp") or {}).get("static_graph") and self.train_loop.micro_batches > 1:
            raise ValueError(
                f"ddp.static_graph does not go with the {self.train_loop.micro_batches} micro-batches of a step: leave "
                "it out, or set max_batch_per_device to all that a device takes in a step"
            )
        scaled = scale_lr(self.optim_wrapper, self.auto_scale_lr, self.cfg.global_batch_size)
        self.auto_scale_lr = None
        try:
            self.optim_wrapper = self.build_optim_wrapper(scaled)
        except TypeError as error:
            raise ValueError(f"the optim_wrapper cannot be built as the config has it: {error}") from error
        check_weights(self.plan, self.task, self.train_loop, self.optim_wrapper)
        if self.cfg.get("zero") and self.distributed:
            settings = {k: v for k, v in scaled["optimizer"].items() if k != "type"}
            self.optim_wrapper.optimizer = ShardedOptimizer(
                self.optim_wrapper.optimizer, settings, dist_timeout(self.cfg)
            )
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        if self.task.freeze_backbone and not self.start_checkpoint:
            self.logger.warning("the backbone is frozen as it was initialised, at random: --load-from gives it weights")
        self.logger.info(self.describe())

    @property
    def plan(self) -> BatchPlan:
        """How a step's batch is spread over the processes and their micro-batches."""
        return BatchPlan(self.cfg.global_batch_size, self.world_size, getattr(self.train_loop, "micro_batches", 1))

    def fit_into_memory(self) -> None:
        """Split a GPU's batch as its memory needs it, where the config does not say how, and say how.

        Raises:
            ValueError: not even one sample fits, or only one where the processes' shares differ.
        """
        if get_device() != "cuda" or self.cfg.get("max_batch_per_device") is not None:
            return
        loader = self.train_dataloader
        if not is_split_invariant(self.task):
            self.logger.info(
                f"max_batch_per_device is not set: the {loader.batch_size} samples of a device go through at once, as "
                "how they are split would change the steps of this model"
            )
            return

        def batch_of(count: int) -> dict:
            return loader.collate_fn([loader.dataset[number % len(loader.dataset)] for number in range(count)])

        kept, shares = self._parts_of_resumed(), self.plan.shares
        if kept:
            parts, sentence = kept, f"a step goes through in {kept} parts, as before the resume"
        else:
            parts, sentence = probe_memory(self.task, batch_of, shares, training_dtype(self.cfg.optim_wrapper))
        # The same on all GPUs, also where others use one of them: the most that one needs.
        most = torch.tensor(parts, device="cuda")
        all_reduce(most, "max")
        self.train_loop.micro_batches = self.optim_wrapper["accumulative_counts"] = most.item()
        self.message_hub.update_info("micro_batches", most.item())
        self.logger.info(sentence if most == parts else f"{sentence}; {most.item()} parts, as another process needs")

    def _parts_of_resumed(self) -> int | None:
        """Into how many parts the run that goes on has split its batch, if the batch can be split so again: another
        number would draw otherwise."""
        if not self.start.resume:
            return None
        self.start = self.start._replace(opened=open_on_all(self.start.path, self.start.opened))
        parts, shares = self.start.opened.info.get("micro_batches"), self.plan.shares
        if not isinstance(parts, int) or not 0 < parts <= shares[0]:
            return None
        as_before = self.start.opened.meta.get("processes") == self.world_size
        return parts if as_before or not any(share % parts for share in shares) else None

    def build_for_validation(self) -> None:
        """Build the validation loop; raise ``ValueError`` if it does not build or the data is not what is wanted."""
        self.build_loop("val")
        self.task.check_data(self.val_dataloader.dataset, "val")
        prepare_metrics(self.val_evaluator, self.val_dataloader.dataset, self.task)

    def build_for_testing(self, opened: Checkpoint | None = None) -> None:
        """Build the test loop, for the checkpoint that ``load_from`` names, if it is open already.

        Raises:
            ValueError: the loop does not build, or the data is not what is wanted.
        """
        self.start = StartPoint(self.start_checkpoint, False, opened, [])
        self.build_loop("test")
        if opened is not None and self.task.uses_labels:
            check_same_classes(opened.path, opened.class_names, "test data", class_names(self.test_dataloader))
        self.task.check_data(self.test_dataloader.dataset, "test")
        check_same_run(self, test=self.test_dataloader)
        prepare_metrics(self.test_evaluator, self.test_dataloader.dataset, self.task)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        recompute = self.cfg.get("activation_checkpointing")
        residual = self.cfg.get("residual_dtype")
        if (
            residual
            and self.cfg.get("train_dataloader")
            and {training_dtype(self.cfg.get("optim_wrapper")), self.val_dtype} == {"float32"}
        ):
            raise ValueError(
                f"residual_dtype={residual!r} is for mixed precision, and training is in float32: add --amp"
            )
        prepare_blocks(model, self.cfg.get("compile_blocks"), recompute is True, residual)
        if isinstance(recompute, bool):
            self.cfg.activation_checkpointing = None  # MMEngine takes names of modules under this key
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
        """Take the line that shows the progress off the terminal, before an error is told on it."""
        for hook in self.hooks:
            if isinstance(hook, ProgressLine):
                hook.close()

    def use_autocast(self, dtype: str) -> None:
        """Evaluate in mixed precision; MMEngine's loops know fp16 on GPUs only, and switch any other autocast off."""
        self.task.eval_dtype = getattr(torch, dtype)

    @contextmanager
    def in_val_dtype(self) -> Iterator[None]:
        """Evaluate in the precision that ``val_dtype`` says, and no longer than for this."""
        before = self.task.eval_dtype
        if self.val_dtype != "float32":
            self.use_autocast(self.val_dtype)
        try:
            yield
        finally:
            self.task.eval_dtype = before

    # Saying -------------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """One paragraph on what is going to be trained: batch, steps, learning rate."""
        loader = self.train_dataloader
        group = self.optim_wrapper.param_groups[0]
        rate = float(group.get("initial_lr", group["lr"]))
        schedules = [s for s in self.param_schedulers or () if isinstance(s, WarmupCosineLR)]
        warmup = f" after {schedules[0].warmup:.0f} steps of warm-up" if schedules else ""
        scaling = self.cfg.get("auto_scale_lr") or {}
        scaled = (
            f" ({self.cfg.optim_wrapper.optimizer.lr:g} x {self.cfg.global_batch_size}" if scaling.get("enable") else ""
        )
        scaled = f"{scaled} / {scaling['base_batch_size']})" if scaled else ""
        kinds = {training_dtype(self.cfg.optim_wrapper), self.val_dtype if self.has_validation else None}
        precision = ""
        if kinds - {"float32", None}:
            precision = f"; trained in {training_dtype(self.cfg.optim_wrapper)}, validated in {self.val_dtype}"
        return (
            f"effective batch {self.plan} images of {len(loader.dataset)}; {len(loader)} steps an epoch, "
            f"{self.max_iters / len(loader):.6g} epochs, {self.max_iters} steps; "
            f"{optimizer_name(self.optim_wrapper.optimizer)}, learning rate {rate:g}{scaled}{warmup}{precision}"
        )

    def _log_env(self, env_cfg: dict) -> None:
        """Log what figures depend on, in one line; the config is in the work folder."""
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
        """The hooks in the order of their priority, in one line where MMEngine prints eighty."""
        return "  " + ", ".join(type(hook).__name__ for hook in self.hooks)
