"""Checkpoints: read without running code, fitted to a model without dropping anything, written in one piece."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.fileio import LocalBackend, register_backend
from torch import nn


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one for this model."""


def read_checkpoint(path: str | Path, map_location: str = "cpu") -> dict:
    """Read a checkpoint or a safetensors file; pickles that want to run code are refused (``weights_only=True``).

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or refused.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist{_nearby(path)}")
    if path.suffix == ".safetensors":
        from .published import read_published

        return read_published(path, map_location)
    if zipfile.is_zipfile(path):  # older formats have no checksums
        check_intact(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise CheckpointError(
                f"checkpoint {path} is refused: loading it would run code of its own ({wanted[1]}); "
                "a checkpoint may hold tensors, numbers, strings, lists and dicts only"
            ) from None
        raise CheckpointError(f"{path} is damaged or no checkpoint: PyTorch cannot read it as plain data") from None
    except Exception as error:  # a file that is none is met in many ways
        raise CheckpointError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path} holds {type(checkpoint).__name__}, not a dict with a state_dict: it is no checkpoint"
        )
    check_form(checkpoint, path)
    return checkpoint


# What a checkpoint says beside its weights and states: entries that must be dicts, where they are there.
DICTS = (
    ("state_dict",),
    ("meta",),
    ("meta", "model"),
    ("meta", "model", "backbone"),
    ("meta", "model", "head"),
    ("meta", "model", "preprocessor"),
    ("meta", "dataset_meta"),
    ("message_hub",),
    ("message_hub", "runtime_info"),
    ("message_hub", "runtime_info", "result_last"),
)


def check_form(checkpoint: dict, source: str | Path) -> None:
    """Raise ``CheckpointError`` unless all that is read of a checkpoint has the form that its readers rely on."""
    for path in DICTS:
        value, known = checkpoint, True
        for key in path:
            known = known and value.get(key) is not None
            value = value[key] if known else {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{source} is no checkpoint: its {'.'.join(path)} is {type(value).__name__}, no dict")
        if not all(isinstance(key, str) for key in value):
            raise CheckpointError(f"{source} is no checkpoint: its {'.'.join(path)} has keys that are no names")
    if not all(isinstance(key, str) for key in checkpoint):
        raise CheckpointError(f"{source} is no checkpoint: it has keys that are no names")
    weights = checkpoint.get("state_dict", checkpoint)
    for name, value in (weights or {}).items():
        if isinstance(value, torch.Tensor) and not _is_plain(value):
            raise CheckpointError(f"{source} is no checkpoint: its {name} is no dense tensor with all of its numbers")


def _is_plain(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def stored_weights(checkpoint: dict, source: str | Path = "the checkpoint") -> dict[str, torch.Tensor]:
    """A checkpoint's ``state_dict``, or the checkpoint if it is a bare one, without the 'module.' of old wrappers.

    Raises:
        CheckpointError: it holds something else than tensors by name.
    """
    stored = checkpoint.get("state_dict", checkpoint)
    if not isinstance(stored, dict):
        raise CheckpointError(f"{source} holds {type(stored).__name__} as its state_dict, not a dict")
    weights = {str(key).removeprefix("module."): value for key, value in stored.items()}
    if len(weights) < len(stored):
        raise CheckpointError(f"{source} holds some parameters twice, with and without 'module.'")
    for key, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{source} is no checkpoint: its {key} is {type(value).__name__}, not a tensor")
    return weights


def load_weights(model: nn.Module, checkpoint: dict, source: str | Path = "the checkpoint") -> None:
    """Load a checkpoint's ``state_dict`` (or the checkpoint, if it is a bare one) into the model, strictly.

    Raises:
        CheckpointError: a parameter is missing, surplus or of another shape; the model is left as it was.
    """
    weights = stored_weights(checkpoint, source)
    wanted = model.state_dict()
    shapes = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(wanted[key].shape)} here"
        for key in wanted
        if key in weights and weights[key].shape != wanted[key].shape
    ]
    missing = [f"{key} is missing" for key in wanted if key not in weights]
    surplus = [f"{key} is surplus" for key in weights if key not in wanted]
    problems = shapes + missing + surplus
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(weights)


def check_intact(path: str | Path) -> None:
    """Compare a checkpoint with the checksums that PyTorch's format has of everything in it, and open it.

    Raises:
        CheckpointError: the file is missing, empty, cut off, or a byte of its content has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # An entry that is marked as a folder by mistake is one whose tensor PyTorch leaves uninitialised.
            folders = (entry.filename for entry in archive.infolist() if entry.external_attr & 0x10)
            damaged = archive.testzip() or next(folders, None)
        # The checksums do not cover the archive's own tables, of which PyTorch reads more than Python does.
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):  # else it is whole, and read_checkpoint refuses it
            raise CheckpointError(f"{path} is damaged: PyTorch cannot read it as plain data") from None
    except Exception as error:  # a changed byte in the tables is met in many ways
        raise CheckpointError(f"{path} is damaged: {_first_line(error)}") from None
    if damaged:
        raise CheckpointError(f"{path} is damaged: its part {damaged} is not what was written")


def training_progress(path: str | Path) -> tuple[int, int] | None:
    """What the name of a training checkpoint says: whole epochs, and iterations in all if it is from within an epoch.

    ``epoch_3.pth`` is (3, 0), ``epoch_3_iter_350.pth`` (3, 350), any other name None; later ones compare as greater.
    """
    match = re.fullmatch(r"epoch_(\d+)(?:_iter_(\d+))?\.pth", Path(path).name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def training_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints of training in a work folder, the oldest first, found by listing it."""
    return sorted(filter(training_progress, Path(work_dir).glob("epoch_*.pth")), key=training_progress)


def newest_checkpoint(
    work_dir: str | Path, report: Callable[[str], None] = warnings.warn, put_aside: bool = False
) -> Path | None:
    """The newest checkpoint of a work folder that is intact, or None if the folder has none.

    Args:
        work_dir: folder of a run.
        report: gets a sentence for each newer one that is damaged.
        put_aside: rename these to ``*.damaged``, so that they count for nothing any more, if one before is intact.

    Raises:
        CheckpointError: all that there are are damaged.
    """
    candidates, damaged = training_checkpoints(work_dir), []
    for path in reversed(candidates):
        try:
            check_intact(path)
        except CheckpointError as error:
            report(f"{error}; taking the one before it")
            damaged.append(path)
        else:
            for other in damaged if put_aside else ():
                with suppress(OSError):
                    other.rename(f"{other}.damaged")
            return path
    if candidates:
        raise CheckpointError(
            f"every checkpoint in {work_dir} is damaged ({', '.join(p.name for p in candidates)}): move them away, "
            "or begin anew without --resume"
        )
    return None


class AtomicBackend(LocalBackend):
    """Local files that are there whole or not at all: written beside their place, synced to disk, then renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        part = Path(f"{filepath}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, filepath)
        except OSError:
            part.unlink(missing_ok=True)  # on a full disk it is in the way
            raise
        _sync_folder(part.parent)


register_backend("atomic", AtomicBackend)


def _sync_folder(folder: Path) -> None:
    """Let the renaming reach the disk, where the system can do that for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse
    finally:
        os.close(descriptor)


def _nearby(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path())
    found = sorted(p.name for p in folder.glob("*.pth"))
    return f"; {folder} holds {', '.join(found[:5])}" if found else ""


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
