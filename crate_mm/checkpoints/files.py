"""Checkpoint files: read without running code, checked against their checksums, found."""

import argparse
import io
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..files import utf8_path
from ..private_torch import PyTorchFileReader
from ..untrusted import open_regular, shown
from .form import CheckpointError, DamagedError, check_form
from .npz import read_npz
from .pickles import PickleScan, Refused, Thing, refusal
from .remote import local_file
from .safe import read_published

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first thing in a file of PyTorch's format before version 1.6


def read_checkpoint(path: str | Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a checkpoint, a safetensors or an npz file; pickles that want to run code are refused.

    The file may be named by an address or by the name of published weights: see ``local_file``.

    What the file asks for in memory and time is compared with its size first, and the form of what it says of itself is
    checked (see ``pickles`` and ``form``).

    Args:
        path: the file.
        map_location: where the tensors go.
        verified: whether the file is known to be what was written, so that its checksums are left out. Whether it would
            run code is looked at in any case.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or refused.
    """
    path = local_file(path)
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {wrong}{_nearby(path)}")
    if path.suffix == ".safetensors":
        return read_published(path, map_location)
    if path.suffix == ".npz":
        return read_npz(path, map_location)
    archive = _is_archive(path)
    if archive and not zipfile.is_zipfile(path):
        raise DamagedError(f"{path} is damaged or no checkpoint: it is cut off")
    refused = check_intact(path, opens=False, sums=not verified) if archive else _scan_old_format(path)
    if refused:
        raise refusal(refused, path)
    try:
        checkpoint = _load(path, map_location=map_location)
    except Exception as error:  # a file that is none is met in many ways
        if isinstance(error, (MemoryError, OSError)) or "allocate" in str(error):
            raise CheckpointError(f"{path} cannot be read now: {_first_line(error)}") from None
        raise DamagedError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path} holds {type(checkpoint).__name__}, not a dict with a state_dict: it is no checkpoint"
        )
    # Other code bases keep their command line's arguments so. What stands in them is looked at as all else is.
    checkpoint = {key: vars(value) if type(value) is argparse.Namespace else value for key, value in checkpoint.items()}
    check_form(checkpoint, path)
    return checkpoint


def _load(path: Path, **options: Any) -> Any:
    """``torch.load`` of what ``PickleScan`` has found to be tensors, plain data and ``argparse.Namespace``."""
    with torch.serialization.safe_globals([argparse.Namespace]), utf8_path(path) as source:
        return torch.load(source, weights_only=True, **options)


def _is_archive(path: Path) -> bool:
    """Whether PyTorch takes the file for an archive, which it has written since version 1.6, by its first bytes."""
    with open_regular(path) as file:
        return file.read(4) == b"PK\x03\x04"


def check_intact(path: str | Path, opens: bool = True, sums: bool = True) -> Refused | None:
    """Compare a checkpoint with the checksums that PyTorch's format has of everything in it, and open it.

    Args:
        path: the file.
        opens: whether PyTorch opens it too, which may be left out where it is read next.
        sums: whether the contents are read and compared, which may be left out where another process of this machine
            has done it.

    Returns:
        Why the file, which is whole, is not read, or None.

    Raises:
        CheckpointError: the file is missing, empty, cut off, or a byte of its content has changed.
    """
    refused = None
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            damaged = _damaged_part(archive, Path(path)) or (archive.testzip() if sums else None)
            if not damaged:
                refused = _scan_archive(archive, Path(path))
        # The checksums do not cover the archive's own tables, of which PyTorch reads more than Python does.
        if opens and not damaged and not refused:
            _load(path, map_location="cpu", mmap=True)
    except pickle.UnpicklingError:
        raise DamagedError(f"{path} is damaged or no checkpoint: PyTorch cannot read it as plain data") from None
    except Exception as error:  # a changed byte in the tables is met in many ways
        raise DamagedError(f"{path} is damaged: {_first_line(error)}") from None
    if damaged:
        raise DamagedError(f"{path} is damaged: its part {shown(damaged)} is not what was written")
    return refused


def _damaged_part(archive: zipfile.ZipFile, path: Path) -> str | None:
    """The name of a part that is not as PyTorch writes it, by the table of contents, or None.

    Raises:
        ValueError: another reader than Python's would find another table of contents.
    """
    file_bytes = path.stat().st_size
    if not _ends_plainly(path, file_bytes, archive.start_dir):
        raise ValueError("its table of contents is not where an archive of PyTorch's has it")
    names, total = set(), 0
    for entry in archive.infolist():
        total += entry.file_size
        # An entry that is marked as a folder by mistake is one whose tensor PyTorch leaves uninitialised; a compressed
        # one may be any size, and of two with one name (PyTorch compares them without case) either may be read.
        odd = entry.external_attr & 0x10 or entry.compress_type != zipfile.ZIP_STORED or total > file_bytes
        if odd or entry.filename.lower() in names:
            return entry.filename
        names.add(entry.filename.lower())
    return None


def _ends_plainly(path: Path, file_bytes: int, table: int) -> bool:
    """Whether an archive's last bytes say that its table of contents begins at ``table`` and goes on to them.

    Readers differ in what they make of anything else: Python takes what lies before the end, PyTorch what it says.
    """
    with open_regular(path) as file:
        file.seek(max(file_bytes - 98, 0))
        tail = file.read()
    end, end_at = tail[-22:], file_bytes - 22
    if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        return False
    size, offset = struct.unpack("<2L", end[12:20])
    locator = tail[-42:-22]
    if locator[:4] == b"PK\6\7":
        long_end, end_at = tail[-98:-42], file_bytes - 98
        if len(long_end) < 56 or long_end[:4] != b"PK\6\6" or struct.unpack("<Q", locator[8:16])[0] != end_at:
            return False
        size, offset = struct.unpack("<2Q", long_end[40:56])
    return offset == table and offset + size == end_at


def _scan_archive(archive: zipfile.ZipFile, path: Path) -> Refused | None:
    """Why the archive's pickle is not read, or None."""
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it is no archive of PyTorch's")
    folder = pickles[0].partition("/")[0]
    contents = archive.read(pickles[0])
    # What PyTorch's own reader, which is another one than Python's, will hand to its unpickler.
    with utf8_path(path) as source:
        seen = PyTorchFileReader(source).get_record("data.pkl")
    if seen != contents:
        raise ValueError("its pickle is another one for PyTorch than for Python")
    try:
        scan = PickleScan(path.stat().st_size, lambda key: sizes.get(f"{folder}/data/{key}"))
        scan.follow(io.BytesIO(contents))
    except Refused as refused:
        return refused
    return None


def _is_tar(path: Path) -> bool:
    try:
        # Not a compressed one, which may be any size, and which PyTorch does not open.
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:"):
            return True
    except tarfile.TarError:
        return False


def _scan_old_format(path: Path) -> Refused | None:
    """Why a file of PyTorch's format before version 1.6, pickles one after the other, is not read; None if it is."""
    try:
        if _is_tar(path):
            raise ValueError("it is a tar archive, PyTorch's format of before version 0.4, which can run code")
        with open_regular(path) as stream:
            scan = PickleScan(path.stat().st_size)
            if scan.follow(stream) != MAGIC_NUMBER:
                raise ValueError("it begins as no file of PyTorch's does")
            for _ in ("protocol", "system", "contents"):
                scan.follow(stream)
            stored = scan.follow(stream)  # PyTorch fills those that are listed, and leaves others as the memory was
            if not isinstance(stored, Thing) or set(stored.items) != scan.storages.keys():
                raise ValueError("it does not hold the storages that it names")
    except Refused as refused:
        return refused
    except Exception as error:  # bytes that are no pickle fail in many ways
        raise DamagedError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None
    return None


def training_progress(path: str | Path) -> tuple[int, int] | None:
    """What the name of a training checkpoint says: whole epochs, and iterations in all if it is from within an epoch.

    ``epoch_3.pth`` is (3, 0), ``epoch_3_iter_350.pth`` (3, 350), any other name None; later ones compare as greater.
    """
    match = re.fullmatch(r"epoch_(\d{1,15})(?:_iter_(\d{1,15}))?\.pth", Path(path).name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def training_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints of training in a work folder, the oldest first, found by listing it; files alone."""
    named = filter(training_progress, Path(work_dir).glob("epoch_*.pth"))
    return sorted((path for path in named if path.is_file()), key=training_progress)


def newest_checkpoint(
    work_dir: str | Path,
    report: Callable[[str], None] = warnings.warn,
    put_aside: bool = False,
    check: Callable[[Path], object] | None = None,
) -> Path | None:
    """The newest checkpoint of a work folder that is intact, or None if the folder has none.

    Args:
        work_dir: folder of a run.
        report: gets a sentence for each newer one that is damaged.
        put_aside: rename these to ``*.damaged``, so that they count for nothing any more, if one before is intact.
        check: raises ``DamagedError`` for a damaged one; ``check_intact`` if not given.

    Raises:
        CheckpointError: all that there are are damaged.
    """
    candidates, damaged = training_checkpoints(work_dir), []
    for path in reversed(candidates):
        try:
            (check or check_intact)(path)
        except DamagedError as error:
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


def _nearby(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path())
    found = sorted(p.name for p in folder.glob("*.pth"))
    return f"; {folder} holds {', '.join(found[:5])}" if found else ""


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
