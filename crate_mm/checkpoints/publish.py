"""Published models: weights in safetensors, with what they are as data beside them, and no code."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

import crate_mm

from ..io.files import atomic_file
from ..io.untrusted import public
from .described import UnregisteredError, compare_described
from .readers.safetensors import KEPT, KEY, MOST_SAID, digest
from .unwrap import Checkpoint
from .validate import FORMAT, CheckpointError

NAMES = ("initialized_from", "averaged_from")  # entries that name files
ADVICE = "publish a checkpoint of crate_mm's training, or one that tools/convert_official.py has written"


def publish(checkpoint: Checkpoint, path: str | Path) -> dict:
    """Write a checkpoint's weights, the averaged ones where it has such, for others to use.

    Args:
        checkpoint: one that says what model it is of.
        path: file to write, ``*.safetensors``.

    Returns:
        What is written beside the weights: ``model`` (config), ``classes``, ``eval_transforms``, ``metrics``, ``run``,
        what ``KEPT`` names, ``sha256`` (of the weights), ``version`` and ``format``.

    Raises:
        CheckpointError: the checkpoint does not say what model its weights are of, or says another one, or it cannot be
            written so.
    """
    source = checkpoint.path
    if not checkpoint.model:
        raise CheckpointError(f"{source} has no model config: {checkpoint.unknown_reason or ADVICE}")
    version = FORMAT
    try:
        compare_described(checkpoint)
    except UnregisteredError:  # it can be opened, and is compared, where its parts are registered
        version = checkpoint.meta.get("format")
    weights, same_as = without_shared(checkpoint.weights, source)
    last = checkpoint.info.get("result_last") or {}
    about = {
        "model": checkpoint.model,
        "classes": checkpoint.class_names,
        "test_transforms": checkpoint.test_transforms,
        "metrics": last if last.get("epoch") == checkpoint.meta.get("epoch") else {},
        "run": checkpoint.run,
        **public({key: checkpoint.meta.get(key) for key in KEPT}, files=NAMES),
        "sha256": digest(weights, same_as),
        "version": crate_mm.__version__,
        "format": version,
    }
    said = json.dumps(about)
    if len(said) > MOST_SAID:
        raise CheckpointError(f"{source} cannot be published: it says more than {MOST_SAID:,} characters of itself")
    try:
        if "__metadata__" in weights:
            raise ValueError("a weight has the name __metadata__, which the format has for itself")
        data = save(weights, {**same_as, "format": "pt", KEY: said})
    except Exception as error:  # the format has not all of PyTorch's kinds of number, nor all names
        raise CheckpointError(f"{source} cannot be published: {type(error).__name__}: {error}") from None
    with atomic_file(path) as file:
        file.write(data)
    return about


def without_shared(
    weights: dict[str, torch.Tensor], source: str | Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights each in memory of its own, as the format asks for, and the names of those that are others', by name.

    Tied weights are stored once. The other names go beside them in the file's metadata, where safetensors'
    ``save_model`` puts them and its ``load_model`` looks for them.

    Raises:
        CheckpointError: weights are different parts of the same memory, and together far larger than it.
    """
    first: dict[tuple, str] = {}
    own, same_as = {}, {}
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype
        kept = first.setdefault((*memory, tuple(tensor.shape), tensor.stride()), name) if tensor.numel() else name
        if kept != name and name not in ("format", KEY):
            same_as[name] = kept
        else:
            own[name] = tensor
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in own.values()}
    total = sum(tensor.numel() * tensor.element_size() for tensor in own.values())
    if total > 4 * sum(storages.values()):
        raise CheckpointError(
            f"{source} cannot be published: its weights are parts of the same memory, {total:,} bytes in "
            f"{sum(storages.values()):,}"
        )
    return {name: tensor.clone().contiguous() for name, tensor in own.items()}, same_as
