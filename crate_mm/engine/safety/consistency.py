"""What all processes of a run must agree on before it starts: the recipe, the data, the weights."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_distributed
from mmengine.runner import Runner
from torch.utils.data import DataLoader

import crate_mm

from ...checkpoints import Checkpoint, CheckpointError, open_checkpoint
from ...checkpoints.readers.safetensors import digest
from ...datasets.base import dataset_of
from ...io.untrusted import env_number, sanitized
from ..checkpointing.results import to_builtin

RECIPE = ("model", "optim_wrapper", "param_scheduler", "train_cfg", "global_batch_size", "zero", "ema_momentum")
RECIPE += ("max_batch_per_device", "activation_checkpointing", "find_unused_parameters", "compile_blocks")
RECIPE += ("residual_dtype", "val_dtype", "tf32", "ddp")


def check_same_run(runner: Runner, **loaders: DataLoader | None) -> None:
    """Raise ``ValueError`` unless all processes have the same recipe and the same data, which may lie on each node.

    Data, whose loaders are given by what they are for, are compared by their number, classes and labels. Processes
    that differ would wait for one another for ever, or train on without a word. All processes call it.
    """
    if runner.world_size == 1:
        return
    mine: dict[str, Any] = {
        f"config's {key}": json.dumps(to_builtin(runner.cfg.get(key)), sort_keys=True, default=repr) for key in RECIPE
    }
    mine |= {"wish to load a checkpoint": bool(runner.start_checkpoint), "wish to resume": runner.is_resuming}
    mine |= {
        "seed": runner.shared_seed,
        "version of crate_mm": crate_mm.__version__,
        "version of PyTorch": torch.__version__,
    }
    for use, loader in loaders.items():
        if loader is None:
            continue
        dataset = dataset_of(loader.dataset)
        mine[f"number of {use} images"] = len(dataset)
        mine[f"number of {use} batches"] = len(loader)
        mine[f"list of classes of the {use} data"] = dataset.classes
        if (labels := dataset.labels()) is not None:
            mine[f"checksum of the {use} labels"] = _checksum(labels)
    for rank, theirs in enumerate(all_gather_object(mine)):
        differ = next((key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)), None)
        if differ:
            there, here = (sanitized(values.get(differ), 60) for values in (theirs, mine))
            raise ValueError(
                f"the {differ} is {there} for process {rank} and {here} here: all processes need the same config and "
                "the same data"
            )


def open_on_all(path: str, opened: Checkpoint | None = None) -> Checkpoint:
    """Open a checkpoint on all processes, of which the first of each node compares it with its checksums.

    The others take its word, and read the file when it is in the node's memory. All processes call it.

    Args:
        path: the file.
        opened: the same, if this process has opened it already.

    Raises:
        CheckpointError: the file cannot be read or is damaged, for any of the processes that look.
    """
    if not is_distributed():
        return opened or open_checkpoint(path)
    failed = None
    if opened is None and env_number("LOCAL_RANK", 0) == 0:
        try:
            opened = open_checkpoint(path)
        except CheckpointError as error:
            failed = error
    told = all_gather_object(None if failed is None else str(failed))
    if failed is not None:
        raise failed
    for rank, sentence in enumerate(told):
        if sentence is not None:
            raise CheckpointError(f"process {rank} cannot open the checkpoint: {sentence}")
    return opened or open_checkpoint(path, verified=True)


def _checksum(labels: Sequence[int]) -> int:
    """Of labels of any kind of whole numbers; a part at a time, as they may be many and mapped from a file."""
    found = 0
    for start in range(0, len(labels), 2**20):
        found = zlib.crc32(np.asarray(labels[start : start + 2**20]).astype(np.int64).tobytes(), found)
    return found


def check_same_checkpoint(runner: Runner, filename: str, meta: dict) -> None:
    """Raise ``CheckpointError`` unless all processes have loaded the same; each may have read its own disk.

    Args:
        runner: with the weights loaded. All processes call it.
        filename: the checkpoint, for the message.
        meta: of a checkpoint that training goes on from, which may also differ in ``epoch`` and ``iter``.
    """
    if runner.world_size == 1:
        return
    weights = digest(runner.task.state_dict())
    mine = (meta.get("epoch", 0), meta.get("iter", 0), weights)
    for rank, theirs in enumerate(all_gather_object(mine)):
        if theirs != mine:
            raise CheckpointError(
                f"{filename} is another file for process {rank} (epoch {theirs[0]}, iteration {theirs[1]}) than "
                f"here (epoch {mine[0]}, iteration {mine[1]}): the work folder must be the same one for all nodes, and "
                "so must a checkpoint to start from"
            )
