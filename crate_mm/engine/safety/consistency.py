"""Check before the run starts that all ranks have the same recipe, data and weights."""

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
from ...config.settings import RECIPE_PARTS, SETTINGS
from ...datasets.base import dataset_of
from ...io.untrusted import env_number, sanitized
from ..checkpointing.results import to_builtin

# ``data_root`` may differ: each node may have its own copy of the data.
SAME = (*RECIPE_PARTS, "train_cfg", *(row.name for row in SETTINGS if "." not in row.name and row.name != "data_root"))


def check_same_run(runner: Runner, **loaders: DataLoader | None) -> None:
    """Raise ``ValueError`` unless all ranks have the same recipe and data; each node may have its own copy of the data.

    Datasets are compared by their size, classes and labels. Ranks that differ would deadlock, or train on different
    data silently. All ranks call it.

    Args:
        runner: the runner.
        loaders: the data loaders, by use ('training', 'validation', 'test').
    """
    if runner.world_size == 1:
        return
    mine: dict[str, Any] = {
        f"config's {key}": json.dumps(to_builtin(runner.cfg.get(key)), sort_keys=True, default=repr) for key in SAME
    }
    mine |= {"load-checkpoint flag": bool(runner.start_checkpoint), "resume flag": runner.is_resuming}
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


def open_on_all(path: str, checkpoint: Checkpoint | None = None) -> Checkpoint:
    """Open a checkpoint on all ranks; one rank per node verifies its checksums.

    The other ranks of the node skip the verification and read the file from the page cache. All ranks call it.

    Args:
        path: the file.
        checkpoint: the same checkpoint, if this rank has already opened it.

    Raises:
        CheckpointError: a verifying rank cannot read the file, or the file is damaged.
    """
    if not is_distributed():
        return checkpoint or open_checkpoint(path)
    own_error = None
    if checkpoint is None and env_number("LOCAL_RANK", 0) == 0:
        try:
            checkpoint = open_checkpoint(path)
        except CheckpointError as error:
            own_error = error
    messages = all_gather_object(None if own_error is None else str(own_error))
    if own_error is not None:
        raise own_error
    for rank, message in enumerate(messages):
        if message is not None:
            raise CheckpointError(f"process {rank} cannot open the checkpoint: {message}")
    return checkpoint or open_checkpoint(path, verified=True)


def _checksum(labels: Sequence[int]) -> int:
    """Return the checksum of integer labels of any dtype, in chunks: the labels may be many and memory-mapped."""
    checksum = 0
    for start in range(0, len(labels), 2**20):
        checksum = zlib.crc32(np.asarray(labels[start : start + 2**20]).astype(np.int64).tobytes(), checksum)
    return checksum


def check_same_checkpoint(runner: Runner, filename: str, meta: dict) -> None:
    """Raise ``CheckpointError`` unless all ranks have loaded the same weights; each may have read its own disk.

    Args:
        runner: the runner, with the weights loaded. All ranks call it.
        filename: the checkpoint, for the message.
        meta: metadata of a resumed checkpoint; its ``epoch`` and ``iter`` are compared too.
    """
    if runner.world_size == 1:
        return
    weights = digest(runner.task.state_dict())
    mine = (meta.get("epoch", 0), meta.get("iter", 0), weights)
    for rank, theirs in enumerate(all_gather_object(mine)):
        if theirs != mine:
            raise CheckpointError(
                f"{filename} is a different file for process {rank} (epoch {theirs[0]}, iteration {theirs[1]}) than "
                f"here (epoch {mine[0]}, iteration {mine[1]}): all nodes need the same work directory and the same "
                "start checkpoint"
            )
