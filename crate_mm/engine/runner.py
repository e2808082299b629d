"""MMEngine's Runner, on any device, with a batch that is a recipe and checkpoints that are checked."""

import copy
import inspect
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import mmengine.runner
import torch
import torchvision
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import BaseLoop
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import crate_mm

from ..conversion import from_official, is_official
from ..registry import RUNNERS
from ..untrusted import shown
from .agreement import check_same_checkpoint, check_same_run
from .batch import BatchPlan
from .blocks import prepare_blocks
from .checkpoint import CheckpointError, check_intact, load_weights, read_checkpoint
from .classes import check_same_classes, class_names, give_dataset
from .config import prepare
from .finite import RunStoppedError
from .launch import init_processes
from .logs import show_names
from .optim import ShardedOptimizer, optimizer_name
from .resume import check_optimizer_state, check_resumable
from .schedule import WarmupCosineLR
from .transfer import initialize
from .work_dir import hold

MAX_FAILED_WRITES = 3


@RUNNERS.register_module()
class Runner(mmengine.runner.Runner):
    """MMEngine's Runner with these differences.

    * It prepares the config (see ``prepare``), dumps the user's own beside the checkpoints, and says at the start what
      it is going to do.
    * Processes without a GPU talk through gloo and hold their models on the CPU.
    * Checkpoints are read with ``weights_only=True`` and loaded strictly.
    * Data and head must agree on the number of classes.

    ``initialized_from`` names the checkpoint that a run started from, also after a resume, or is None.
    """

    initialized_from: str | None = None
    tested_meta: ClassVar[dict] = {}  # what a tested checkpoint says of itself
    test_seconds: float = 0.0
    failed_writes: int = 0
    failed_at: int | None = None  # the iteration of the last write that failed

    @classmethod
    def from_cfg(cls, cfg: Config) -> "Runner":
        timeout = cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout")
        init_processes(cfg.get("launcher", "none"), timeout)
        runner = super().from_cfg(prepare(cfg))
        source = Path(cfg.filename or "config.py")
        target = Path(runner.work_dir) / source.name
        if is_main_process() and target.resolve() != source.resolve():
            dumped = copy.deepcopy(cfg)
            dumped.update(resume=False, load_from=None, launcher="none")  # of this start, not of the recipe
            dumped.dump(target)
        return runner

    def dump_config(self) -> None:
        """Nothing: ``from_cfg`` dumps the user's config, not the prepared one, which holds for these processes only."""

    def _log_env(self, env_cfg: dict) -> None:
        """Log what figures depend on, in one line; the config is in the work folder."""
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        self.logger.info(
            f"Python {platform.python_version()}, PyTorch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"crate_mm {crate_mm.__version__}; {self.world_size} x {device}; seed {self.seed}; {self.work_dir}"
        )

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        # MMEngine's CheckpointHook warns of MMEngine's own old FileClient.
        logger.addFilter(lambda record: "will be deprecated in future" not in str(record.msg))
        logger.addFilter(show_names)
        return logger

    def get_hooks_info(self) -> str:
        """The hooks in the order of their priority, in one line where MMEngine prints eighty."""
        return "  " + ", ".join(type(hook).__name__ for hook in self.hooks)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        recompute = self.cfg.get("activation_checkpointing")
        prepare_blocks(model, self.cfg.get("compile_blocks"), recompute is True)
        if isinstance(recompute, bool):
            self.cfg.activation_checkpointing = None  # MMEngine takes names of modules under this key
        if model_wrapper_cfg or not self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        device = get_device()
        device_ids = [torch.cuda.current_device()] if device == "cuda" else None
        # Our models have no buffers that training changes. The option has changed its name in PyTorch.
        names = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        unused = self.cfg.get("find_unused_parameters", False)
        return MMDistributedDataParallel(
            module=model.to(device), device_ids=device_ids, find_unused_parameters=unused, **{sync: False}
        )

    def build_for_training(self) -> None:
        """Build everything that training needs, check that it fits together, and say what it is.

        Raises:
            ValueError: a part of the config does not build, or the data's classes are not the head's.
        """
        self._train_loop = self.build_train_loop(self._train_loop)
        self.check_classes(self.train_dataloader.dataset)
        if self._val_loop is not None:
            self._val_loop = self.build_val_loop(self._val_loop)
            self.check_classes(self.val_dataloader.dataset)
            check_same_classes(
                "training data", class_names(self.train_dataloader), "validation data", class_names(self.val_dataloader)
            )
            give_dataset(self.val_evaluator, self.val_dataloader.dataset)
        try:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        except TypeError as error:
            raise ValueError(f"the optim_wrapper cannot be built as the config has it: {error}") from error
        if self.cfg.get("zero") and self.distributed:
            settings = {k: v for k, v in self.cfg.optim_wrapper.optimizer.items() if k != "type"}
            self.optim_wrapper.optimizer = ShardedOptimizer(self.optim_wrapper.optimizer, settings)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        self.check_frozen()
        validation = self.val_dataloader if self._val_loop is not None else None
        check_same_run(self, training=self.train_dataloader, validation=validation)
        self.logger.info(self.describe())

    def train(self) -> nn.Module:
        if isinstance(self._train_loop, dict):
            self.build_for_training()
        lock = hold(self.work_dir)
        try:
            return super().train()
        finally:
            if lock:
                lock.release()

    def build_for_testing(self) -> None:
        """Build the test loop; raise ``ValueError`` if it does not build or the data's classes are not the head's."""
        if self._test_loop is None:
            raise ValueError("the config lacks one of test_dataloader, test_cfg and test_evaluator")
        self._test_loop = self.build_test_loop(self._test_loop)
        self.check_classes(self.test_dataloader.dataset)
        check_same_run(self, test=self.test_dataloader)
        give_dataset(self.test_evaluator, self.test_dataloader.dataset)

    def test(self) -> dict[str, float]:
        if isinstance(self._test_loop, dict):
            self.build_for_testing()
        start = time.perf_counter()
        metrics = super().test()
        self.test_seconds = time.perf_counter() - start
        return metrics

    def use_autocast(self, dtype: str) -> None:
        """Evaluate in mixed precision; MMEngine's loops know fp16 on GPUs only, and switch any other autocast off."""
        model = getattr(self.model, "module", self.model)
        model.forward = torch.autocast(get_device(), getattr(torch, dtype))(model.forward)

    def check_classes(self, dataset) -> None:
        """Raise ``ValueError`` if the head has not one output for each of the dataset's classes."""
        model = getattr(self.model, "module", self.model)
        classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
        if classes is not None and len(classes) != model.num_classes:
            first = ", ".join(map(shown, classes[:3]))
            raise ValueError(
                f"the data has {len(classes)} classes ({first}, ...), the head {model.num_classes}: "
                f"--cfg-options model.head.num_classes={len(classes)} makes them agree"
            )

    def check_frozen(self) -> None:
        """Warn of a frozen backbone that no checkpoint fills."""
        model = getattr(self.model, "module", self.model)
        if getattr(model, "freeze_backbone", False) and not self._load_from:
            self.logger.warning("the backbone is frozen as it was initialised, at random: --load-from gives it weights")

    def describe(self) -> str:
        """One paragraph on what is going to be trained: batch, steps, learning rate."""
        loader = self.train_dataloader
        micro_batches = getattr(self.train_loop, "micro_batches", 1)
        plan = BatchPlan(self.world_size * loader.batch_size, self.world_size, loader.batch_size, micro_batches)
        group = self.optim_wrapper.param_groups[0]
        rate = float(group.get("initial_lr", group["lr"]))
        schedules = [s for s in self.param_schedulers or () if isinstance(s, WarmupCosineLR)]
        warmup = f" after {schedules[0].warmup:.0f} steps of warm-up" if schedules else ""
        return (
            f"effective batch {plan} images of {len(loader.dataset)}; {len(loader)} steps an epoch, "
            f"{self.max_epochs} epochs, {self.max_iters} steps; "
            f"{optimizer_name(self.optim_wrapper.optimizer)}, learning rate {rate:g}{warmup}"
        )

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = True,
        revise_keys: list = (),
    ) -> dict:
        """Load weights from a file of ours or of the official code.

        To resume or to test, all are loaded or none. A run that starts from the file is initialised by it: the head
        starts anew, position embeddings are resized, and a table says what became of each parameter.
        ``strict`` and ``revise_keys`` are MMEngine's and have no effect.

        Raises:
            CheckpointError: the file cannot be read, or is not of this model.
        """
        checkpoint = read_checkpoint(filename, map_location)
        if is_official(checkpoint):
            self.logger.info(f"{filename} has the official code's names: converting it")
            try:
                checkpoint = from_official(checkpoint, filename)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        meta = checkpoint["meta"] if isinstance(checkpoint.get("meta"), dict) else {}
        meta.pop("config", None)  # MMEngine's resume would run it
        model = getattr(self.model, "module", self.model)
        if self._resume:
            check_resumable(self, filename, checkpoint)
            if meta.get("processes", self.world_size) != self.world_size:
                self.logger.warning(
                    f"{filename} was trained on {meta['processes']} processes and goes on on {self.world_size}: with "
                    "the same batches, but sums in another order, so no longer identical to the last bit"
                )
            self.initialized_from = meta.get("initialized_from")
        elif isinstance(self._train_loop, BaseLoop):
            transfer = initialize(model, checkpoint, filename)
            self.logger.info(f"initialised from {filename}:\n{transfer.table()}")
            self.initialized_from = str(filename)
            checkpoint = {"meta": meta, "state_dict": model.state_dict()}
        else:
            self._compare(filename, meta)
            self.initialized_from = meta.get("initialized_from")
            self.tested_meta = meta
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        load_weights(model, checkpoint, source=filename)
        check_same_checkpoint(self, filename, meta if self._resume else {})
        self._has_loaded = True
        self.logger.info(f"loaded checkpoint {filename}")
        return checkpoint

    def save_checkpoint(self, out_dir: str, filename: str, *args, save_optimizer: bool = True, **kwargs) -> bool:
        """As MMEngine's, which the first process writes; all of them call it and hand it their part of the state.

        What is written is read back.

        Returns:
            Whether this process knows of no failure: the run goes on without a checkpoint that cannot be written.

        Raises:
            RunStoppedError: none could be written for some time.
        """
        optimizer = getattr(self.optim_wrapper, "optimizer", None)
        if save_optimizer and isinstance(optimizer, ShardedOptimizer):
            optimizer.consolidate_state_dict()
        path = Path(out_dir) / filename
        try:
            super().save_checkpoint(out_dir, filename, *args, save_optimizer=save_optimizer, **kwargs)
            if is_main_process():
                check_intact(path)
        except (OSError, CheckpointError) as error:
            if isinstance(error, CheckpointError):
                path.unlink(missing_ok=True)  # it would be taken for the newest one
            if self.failed_at != self.iter:  # an epoch's end has several to write
                self.failed_writes, self.failed_at = self.failed_writes + 1, self.iter
            times = f"{self.failed_writes} times in a row"
            if self.failed_writes >= MAX_FAILED_WRITES:
                raise RunStoppedError(
                    f"the checkpoint could not be written {times} ({error}): the earlier ones are intact, "
                    "--resume goes on from the newest of them"
                ) from error
            self.logger.error(
                f"THE CHECKPOINT IS NOT WRITTEN: {error}. The earlier ones are intact; training goes on, and stops "
                f"when {MAX_FAILED_WRITES} in a row fail (so far {self.failed_writes})"
            )
            return False
        self.failed_writes, self.failed_at = 0, None
        return True

    def resume(self, filename: str, *args, **kwargs) -> None:
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
        if hasattr(self.train_dataloader.sampler, "seed"):
            self.train_dataloader.sampler.seed = self.seed  # the checkpoint's, where the config has none
        if self.epoch >= self.max_epochs:
            self.logger.warning(
                f"nothing is left to train: {filename} is of epoch {self.epoch}, "
                f"train_cfg.max_epochs is {self.max_epochs}"
            )

    def _compare(self, filename: str, meta: dict) -> None:
        """Compare what shapes do not tell with what the checkpoint says of itself."""
        trained, data = meta.get("model") or {}, meta.get("dataset_meta") or {}
        for part in ("backbone", "head"):
            stored, configured = trained.get(part) or {}, self.cfg.model.get(part) or {}
            for key in stored.keys() & configured.keys() - {"num_classes"}:
                if _plain(stored[key]) != _plain(configured[key]):
                    self.logger.warning(
                        f"{filename} was trained with {part}.{key}={shown(repr(stored[key]))}, the config has "
                        f"{shown(repr(configured[key]))}"
                    )
        if isinstance(self._test_loop, BaseLoop):
            try:
                check_same_classes(str(filename), data.get("classes"), "test data", class_names(self.test_dataloader))
            except ValueError as error:
                raise CheckpointError(str(error)) from None


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
