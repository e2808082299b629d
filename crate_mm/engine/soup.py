"""What an average of checkpoints needs of a config: its validation, and training images for BatchNorm's statistics."""

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
from ..registry import FUNCTIONS
from .loading.sample_preview import SamplePreview
from .runner import Runner

MOST_AT_ONCE = 256  # images of a batch whose statistics are taken


@contextmanager
def validating(cfg: Config) -> Iterator["Validation"]:
    """The validation of a config, for many checkpoints of its model.

    Raises:
        ValueError: the config has no validation, or something does not build.
    """
    cfg = cfg.copy()
    if not cfg.get("val_dataloader") or not cfg.get("val_evaluator"):
        raise ValueError("the config has no val_dataloader and val_evaluator, by which checkpoints could be chosen")
    fill_banks(cfg)
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "ema_momentum", "visualizer"):
        cfg[key] = None
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None, val_cfg=cfg.get("val_cfg") or {})
    cfg.update(load_from=None, resume=False, launcher="none", log_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        yield Validation(Runner.from_cfg(cfg))


class Validation:
    """Scores checkpoints by the headline of the task: ``metric``, of which more is better if ``greater``."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.metric, rule = runner.task.headline
        self.greater = rule == "greater"

    def __call__(self, checkpoint: Checkpoint) -> float:
        """The headline's metric of a checkpoint.

        Raises:
            CheckpointError: it is not of the config's model.
        """
        load_strict(self.runner.task, checkpoint)
        return float(self.runner.val()[self.metric])


def with_own_statistics(checkpoint: Checkpoint, cfg: Config, images: int = 4096) -> Checkpoint:
    """A checkpoint whose BatchNorm statistics are those of its weights: the mean over batches of training images.

    They are the first images of the first epoch, augmented as in training but for what is done to a batch, in batches
    of the config's size, at most ``MOST_AT_ONCE``. What the model drops at random in training, it drops here too.

    Args:
        checkpoint: one that says what model it is of.
        cfg: a config with the training data.
        images: how many of them.

    Raises:
        ValueError: the data is not here, or there is not one whole batch of it.
    """
    samples = SamplePreview(cfg)
    size = min(samples.batch_size, MOST_AT_ONCE, images)
    samples.sampler.set_epoch(0)
    indices = list(islice(samples.sampler, images // size * size))
    described = {**checkpoint.model}
    described.pop("freeze_backbone", None)  # whose statistics would not be taken
    task = build_from_checkpoint(replace(checkpoint, model=described))
    load_strict(task, checkpoint)
    task = task.to(get_device())
    loader = DataLoader(samples.dataset, size, sampler=indices, collate_fn=FUNCTIONS.get("collate"), drop_last=True)
    update_bn((task.data_preprocessor({"inputs": batch["inputs"]})["inputs"] for batch in loader), task)
    weights = {name: value.cpu() for name, value in task.state_dict().items()}
    return replace(checkpoint, weights={name: weights[name].to(old.dtype) for name, old in checkpoint.weights.items()})
