"""Score averaged checkpoints by a config's validation, and recompute BatchNorm statistics on its training images."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

from mmengine.config import Config
from mmengine.device import get_device
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from ..checkpoints import Checkpoint, build_from_checkpoint
from ..checkpoints.fit import load_strict
from ..config import fill_banks
from ..engine.runner import Runner
from ..registry import FUNCTIONS
from .sample_preview import SamplePreview

MAX_BATCH_SIZE = 256


@contextmanager
def validating(cfg: Config) -> Iterator["Validation"]:
    """Yield a function that validates checkpoints of a config's model.

    Raises:
        ValueError: the config has no validation or does not build.
    """
    cfg = cfg.copy()
    if not cfg.get("val_dataloader") or not cfg.get("val_evaluator"):
        raise ValueError("choosing checkpoints by their score needs a config with val_dataloader and val_evaluator")
    fill_banks(cfg)
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "ema_momentum", "visualizer"):
        cfg[key] = None
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None, val_cfg=cfg.get("val_cfg") or {})
    cfg.update(load_from=None, resume=False, launcher="none", log_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        yield Validation(Runner.from_cfg(cfg))


class Validation:
    """Score checkpoints by the task's headline metric.

    Attributes:
        metric: name of the metric.
        greater: whether greater values are better.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.metric, rule = runner.task.headline
        self.greater = rule == "greater"

    def __call__(self, checkpoint: Checkpoint) -> float:
        """Return the headline metric of a checkpoint.

        Raises:
            CheckpointError: the checkpoint does not match the config's model.
        """
        load_strict(self.runner.task, checkpoint)
        return float(self.runner.val()[self.metric])


def with_own_statistics(checkpoint: Checkpoint, cfg: Config, images: int = 4096) -> Checkpoint:
    """Return the checkpoint with BatchNorm statistics of its own weights, the mean over batches of training images.

    The images are the first ones of the first epoch, augmented as in training, except for batch augmentation. The batch
    size is the config's, at most ``MAX_BATCH_SIZE``. Dropout and stochastic depth are active.

    Args:
        checkpoint: a checkpoint with a model config.
        cfg: a config with the training data.
        images: number of training images.

    Raises:
        ValueError: the data does not exist, or there is less than one batch.
    """
    samples = SamplePreview(cfg)
    size = min(samples.batch_size, MAX_BATCH_SIZE, images)
    samples.sampler.set_epoch(0)
    indices = list(islice(samples.sampler, images // size * size))
    model = {**checkpoint.model}
    model.pop("freeze_backbone", None)  # a frozen backbone does not update its statistics
    task = build_from_checkpoint(replace(checkpoint, model=model))
    load_strict(task, checkpoint)
    task = task.to(get_device())
    loader = DataLoader(samples.dataset, size, sampler=indices, collate_fn=FUNCTIONS.get("collate"), drop_last=True)
    update_bn((task.data_preprocessor({"inputs": batch["inputs"]})["inputs"] for batch in loader), task)
    weights = {name: value.cpu() for name, value in task.state_dict().items()}
    return replace(checkpoint, weights={name: weights[name].to(old.dtype) for name, old in checkpoint.weights.items()})
