"""Read safetensors files of crate_mm and of third-party code: weights and metadata."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...io.files import utf8_path
from ...io.untrusted import read_json
from ..validate import CheckpointError

WEIGHTS = "model.safetensors"  # file name that huggingface_hub uses in a model folder
KEY = "crate_mm"  # metadata key of the manifest that ``publish`` writes
# Training metadata that is published with the weights.
META_KEYS = ("epoch", "seed", "recipe", "initialized_from", "transfer_from")
META_KEYS += ("translated_from", "assumed", "averaged_from")
MAX_MANIFEST_CHARS = 2**24


def read_safetensors(path: Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a safetensors file as a checkpoint, including the manifest that ``publish`` writes.

    Args:
        path: the file.
        map_location: device of the tensors.
        verified: skip the hash because the file is known to be intact.

    Raises:
        CheckpointError: the file is damaged, or not a safetensors file.
    """
    try:
        with utf8_path(path) as source, safe_open(source, framework="pt", device=str(map_location)) as file:
            stored = set(file.keys())
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
            metadata = file.metadata() or {}
        if len(metadata.get(KEY, "")) > MAX_MANIFEST_CHARS:
            raise ValueError(f"its metadata has more than {MAX_MANIFEST_CHARS:,} characters")
        manifest = read_json(metadata.get(KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} is damaged: its metadata is {type(manifest).__name__}, not a dict")
    aliases = {name: target for name, target in metadata.items() if name not in stored and target in stored}
    if "sha256" in manifest and not verified and manifest["sha256"] != digest(weights, aliases):
        raise CheckpointError(f"{path} is damaged: its weights do not match their hash")
    weights |= {name: weights[target] for name, target in aliases.items()}
    return as_contents(manifest, weights)


def as_contents(manifest: dict, weights: dict[str, torch.Tensor]) -> dict:
    """Arrange a published manifest and weights as a training checkpoint, unchecked (see ``check_form``)."""
    meta = {key: manifest.get(key) for key in ("format", "model", "test_transforms", "run", *META_KEYS)}
    meta["dataset_meta"] = {"classes": manifest.get("classes")}
    return {"meta": {key: value for key, value in meta.items() if value is not None}, "state_dict": weights}


def digest(weights: dict[str, torch.Tensor], aliases: dict[str, str] | None = None) -> str:
    """Return the SHA-256 of the weights' names, dtypes, shapes and values, and of the aliases of tied weights."""
    total = hashlib.sha256()
    for name in sorted({**weights, **(aliases or {})}):
        if name not in weights:
            total.update(f"{name} = {aliases[name]}".encode())
            continue
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
