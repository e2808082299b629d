"""Published models: weights in safetensors, with what they are as data beside them, and no code."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import crate_mm

from ..files import atomic_file
from ..untrusted import read_json
from .checkpoint import CheckpointError, check_form, stored_weights

KEY = "crate_mm"  # of the file's metadata
MOST_SAID = 2**24  # characters under that key


def publish(checkpoint: dict, path: str | Path, source: str | Path = "the checkpoint") -> dict:
    """Write a checkpoint's weights, the averaged ones where it has such, for others to use.

    Args:
        checkpoint: of ``read_checkpoint``.
        path: file to write, ``*.safetensors``.
        source: of the checkpoint, for messages.

    Returns:
        What is written beside the weights: ``model`` (config), ``classes``, ``metrics``, ``sha256`` (of the weights)
        and ``version``.

    Raises:
        CheckpointError: the checkpoint holds no weights, or does not say what model they are of.
    """
    weights, same_as = without_shared(stored_weights(checkpoint, source), source)
    meta = checkpoint.get("meta") or {}
    if not meta.get("model"):
        raise CheckpointError(
            f"{source} does not say what model it is of: publish a checkpoint of crate_mm's training, or one that "
            "tools/convert_official.py has written"
        )
    info = (checkpoint.get("message_hub") or {}).get("runtime_info") or {}
    last = info.get("result_last") or {}
    about = {
        "model": meta["model"],
        "classes": (meta.get("dataset_meta") or {}).get("classes"),
        "metrics": last if last.get("epoch") == meta.get("epoch") else {},
        "sha256": digest(weights, same_as),
        "version": crate_mm.__version__,
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


def read_published(path: str | Path, map_location: str = "cpu") -> dict:
    """Read a safetensors file as a checkpoint, with what ``publish`` has written beside the weights.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt", device=str(map_location)) as file:
            stored = set(file.keys())
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            metadata = file.metadata() or {}
        if len(metadata.get(KEY, "")) > MOST_SAID:
            raise ValueError(f"it says more than {MOST_SAID:,} characters of itself")
        about = read_json(metadata.get(KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} is damaged: what it says of itself is {type(about).__name__}, not a dict")
    same_as = {name: kept for name, kept in metadata.items() if name not in stored and kept in stored}
    if about.get("sha256", digest(weights, same_as)) != digest(weights, same_as):
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    weights |= {name: weights[kept] for name, kept in same_as.items()}
    meta = {"model": about.get("model"), "dataset_meta": {"classes": about.get("classes")}}
    published = {"meta": {key: value for key, value in meta.items() if value}, "state_dict": weights}
    check_form(published, path)
    return published


def digest(weights: dict[str, torch.Tensor], same_as: dict[str, str] | None = None) -> str:
    """SHA-256 over names, types, shapes and values; of a tied weight, over both names."""
    total = hashlib.sha256()
    for name in sorted({**weights, **(same_as or {})}):
        if name not in weights:
            total.update(f"{name} = {same_as[name]}".encode())
            continue
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
