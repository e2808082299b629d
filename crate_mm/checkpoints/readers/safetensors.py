"""Safetensors files, ours and others': weights, and what is said of them as data."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...io.files import utf8_path
from ...io.untrusted import read_json
from ..validate import CheckpointError

WEIGHTS = "model.safetensors"  # in a folder of the Hub's library
KEY = "crate_mm"  # of the file's metadata
# What a checkpoint says of its training that goes with its weights.
KEPT = ("epoch", "seed", "recipe", "initialized_from", "transfer_from", "translated_from", "assumed", "averaged_from")
MOST_SAID = 2**24  # characters under that key


def read_safetensors(path: Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a safetensors file as a checkpoint, with what ``publish`` has written beside the weights.

    Args:
        path: the file.
        map_location: the device of the tensors.
        verified: leave out the hash, as the file is known to be what was written.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with utf8_path(path) as source, safe_open(source, framework="pt", device=str(map_location)) as file:
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
    if "sha256" in about and not verified and about["sha256"] != digest(weights, same_as):
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    weights |= {name: weights[kept] for name, kept in same_as.items()}
    return as_contents(about, weights)


def as_contents(about: dict, weights: dict[str, torch.Tensor]) -> dict:
    """What ``publish`` has written of a model, with its weights, as the contents of a checkpoint of training.

    Nothing is checked: ``check_form`` does it.
    """
    meta = {key: about.get(key) for key in ("format", "model", "test_transforms", "run", *KEPT)}
    meta["dataset_meta"] = {"classes": about.get("classes")}
    return {"meta": {key: value for key, value in meta.items() if value is not None}, "state_dict": weights}


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
