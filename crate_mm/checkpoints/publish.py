"""Publish models as safetensors: weights and a manifest, without code."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

import crate_mm

from ..io.files import atomic_file
from ..io.untrusted import public
from .described import UnregisteredError, compare_described
from .readers.safetensors import KEY, MAX_MANIFEST_CHARS, META_KEYS, digest
from .unwrap import Checkpoint
from .validate import FORMAT, CheckpointError

FILE_KEYS = ("initialized_from", "averaged_from")  # manifest entries that contain file names
ADVICE = "publish a training checkpoint of crate_mm, or one written by tools/convert_official.py"


def publish(checkpoint: Checkpoint, path: str | Path, facts: dict | None = None) -> dict:
    """Write a checkpoint's weights, averaged ones if it has them, and their manifest.

    Args:
        checkpoint: a checkpoint with a model config.
        path: file to write, ``*.safetensors``.
        facts: further entries of the manifest, as from ``published_facts``.

    Returns:
        The manifest: ``model`` (config), ``classes``, ``test_transforms``, ``metrics``, ``run``, the ``META_KEYS``,
        ``sha256`` (of the weights), ``version`` and ``format``.

    Raises:
        CheckpointError: the model config is missing or does not match the weights, or the format cannot store them.
    """
    source = checkpoint.path
    if not checkpoint.model:
        raise CheckpointError(f"{source} has no model config: {checkpoint.unknown_reason or ADVICE}")
    version = FORMAT
    try:
        compare_described(checkpoint)
    except UnregisteredError:  # compare later, when the file is opened and its parts are registered
        version = checkpoint.meta.get("format")
    weights, aliases = without_shared(checkpoint.weights, source)
    last = checkpoint.info.get("result_last") or {}
    manifest = {
        "model": checkpoint.model,
        "classes": checkpoint.class_names,
        "test_transforms": checkpoint.test_transforms,
        "metrics": last if last.get("epoch") == checkpoint.meta.get("epoch") else {},
        "run": checkpoint.run,
        **public({key: checkpoint.meta.get(key) for key in META_KEYS}, files=FILE_KEYS),
        "sha256": digest(weights, aliases),
        "version": crate_mm.__version__,
        "format": version,
        **(facts or {}),
    }
    text = json.dumps(manifest)
    if len(text) > MAX_MANIFEST_CHARS:
        raise CheckpointError(
            f"{source} cannot be published: its metadata has more than {MAX_MANIFEST_CHARS:,} characters"
        )
    try:
        if "__metadata__" in weights:
            raise ValueError("a weight has the name __metadata__, which the format reserves")
        data = save(weights, {**aliases, "format": "pt", KEY: text})
    except Exception as error:  # safetensors does not support every dtype and name
        raise CheckpointError(f"{source} cannot be published: {type(error).__name__}: {error}") from None
    with atomic_file(path) as file:
        file.write(data)
    return manifest


def without_shared(
    weights: dict[str, torch.Tensor], source: str | Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return weights that share no memory, as the format requires, and the aliases of tied weights.

    Tied weights are stored once. Aliases go into the file's metadata, as in safetensors' ``save_model`` and
    ``load_model``.

    Raises:
        CheckpointError: weights overlap in memory and would be stored as far more bytes than this memory holds.
    """
    first: dict[tuple, str] = {}
    unique_weights, aliases = {}, {}
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype
        target = first.setdefault((*memory, tuple(tensor.shape), tensor.stride()), name) if tensor.numel() else name
        if target != name and name not in ("format", KEY):
            aliases[name] = target
        else:
            unique_weights[name] = tensor
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in unique_weights.values()
    }
    total = sum(tensor.numel() * tensor.element_size() for tensor in unique_weights.values())
    if total > 4 * sum(storages.values()):
        raise CheckpointError(
            f"{source} cannot be published: its weights overlap in memory, {total:,} bytes in "
            f"{sum(storages.values()):,}"
        )
    return {name: tensor.clone().contiguous() for name, tensor in unique_weights.items()}, aliases
