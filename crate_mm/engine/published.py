"""Published models: weights in safetensors, with what they are as data beside them, and no code."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import crate_mm

from .checkpoint import AtomicBackend, CheckpointError, check_form, stored_weights

KEY = "crate_mm"  # of the file's metadata


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
    # Each in memory of its own, which the format asks for, shared weights too.
    weights = {name: tensor.clone().contiguous() for name, tensor in stored_weights(checkpoint, source).items()}
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
        "sha256": digest(weights),
        "version": crate_mm.__version__,
    }
    AtomicBackend().put(save(weights, {"format": "pt", KEY: json.dumps(about)}), path)
    return about


def read_published(path: str | Path, map_location: str = "cpu") -> dict:
    """Read a safetensors file as a checkpoint, with what ``publish`` has written beside the weights.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt", device=str(map_location)) as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} is damaged: what it says of itself is {type(about).__name__}, not a dict")
    if about.get("sha256", digest(weights)) != digest(weights):
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    meta = {"model": about.get("model"), "dataset_meta": {"classes": about.get("classes")}}
    published = {"meta": {key: value for key, value in meta.items() if value}, "state_dict": weights}
    check_form(published, path)
    return published


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
