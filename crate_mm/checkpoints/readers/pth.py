"""Read PyTorch's files after verifying their checksums and scanning them for code."""

import argparse
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import torch

from ...io.files import utf8_path
from ...io.untrusted import open_regular, sanitized
from ...torch_private import PyTorchFileReader
from ..validate import CheckpointError, DamagedError, first_line
from .pickles import ObjectStub, PickleScan, RefusedPickleError, refusal

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # first object in a file of PyTorch before version 1.6
PLAIN_OBJECTS = [argparse.Namespace]  # third-party files store command-line arguments in a Namespace


def read_pth(path: Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a file of PyTorch's format; a pickle that names code is refused and not run.

    First, the memory and time that the file requests are compared with the file's size (see ``pickles``).

    Args:
        path: the file.
        map_location: device of the tensors.
        verified: skip the checksums because the file is known to be intact. The pickle is scanned anyway.

    Raises:
        CheckpointError: the file is damaged, refused or not a checkpoint.
    """
    archive = _is_archive(path)
    if archive and not zipfile.is_zipfile(path):
        raise DamagedError(f"{path} is damaged or not a checkpoint: it is truncated")
    refused = verify_checkpoint(path, opens=False, sums=not verified) if archive else _scan_old_format(path)
    if refused:
        raise refusal(refused, path)
    try:
        with torch.serialization.safe_globals(PLAIN_OBJECTS), utf8_path(path) as source:
            contents = torch.load(source, map_location=map_location, weights_only=True)
    except Exception as error:  # PyTorch raises exceptions of any type on a malformed file
        if isinstance(error, (MemoryError, OSError)) or "allocate" in str(error):
            raise CheckpointError(f"{path} cannot be read now: {first_line(error)}") from None
        raise DamagedError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from None
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"{path} holds {type(contents).__name__}, not a dict with a state_dict: it is not a checkpoint"
        )
    return {key: vars(value) if type(value) in PLAIN_OBJECTS else value for key, value in contents.items()}


def _is_archive(path: Path) -> bool:
    """Return whether PyTorch treats the file as a zip archive, PyTorch's format since version 1.6."""
    with open_regular(path) as file:
        return file.read(4) == b"PK\x03\x04"


def verify_checkpoint(path: str | Path, opens: bool = True, sums: bool = True) -> RefusedPickleError | None:
    """Verify a checkpoint archive: its checksums, its pickle, and that PyTorch can open it.

    Args:
        path: the file.
        opens: open the file with PyTorch; not needed if it is read next.
        sums: read and verify the contents; not needed if another process on this machine has done so.

    Returns:
        The reason why the intact file is refused, or None.

    Raises:
        CheckpointError: the file is missing, empty or truncated, or its content has changed.
    """
    refused = None
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            damaged = _damaged_part(archive, Path(path)) or (archive.testzip() if sums else None)
            if not damaged:
                refused = _scan_archive(archive, Path(path))
        # The checksums do not cover the archive's tables, and PyTorch reads more of them than Python.
        if opens and not damaged and not refused:
            with torch.serialization.safe_globals(PLAIN_OBJECTS), utf8_path(path) as source:
                torch.load(source, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedError(f"{path} is damaged or not a checkpoint: PyTorch cannot read it as plain data") from None
    except Exception as error:  # a changed byte in the tables can raise anything
        raise DamagedError(f"{path} is damaged: {first_line(error)}") from None
    if damaged:
        raise DamagedError(f"{path} is damaged: the content of its part {sanitized(damaged)} has changed")
    return refused


def _damaged_part(archive: zipfile.ZipFile, path: Path) -> str | None:
    """Return the name of the first part with an entry in the table of contents that PyTorch would not write, or None.

    Raises:
        ValueError: a reader other than Python's would use another table of contents.
    """
    file_bytes = path.stat().st_size
    if not _ends_plainly(path, file_bytes, archive.start_dir):
        raise ValueError("its table of contents is not where PyTorch writes it")
    names, total = set(), 0
    for entry in archive.infolist():
        total += entry.file_size
        # PyTorch leaves a tensor uninitialized if its entry is marked as a folder. A compressed entry can expand to any
        # size. Of two entries with the same name (PyTorch ignores case), either may be read.
        invalid = entry.external_attr & 0x10 or entry.compress_type != zipfile.ZIP_STORED or total > file_bytes
        if invalid or entry.filename.lower() in names:
            return entry.filename
        names.add(entry.filename.lower())
    return None


def _ends_plainly(path: Path, file_bytes: int, table: int) -> bool:
    """Return whether an archive's end record gives the span of its table of contents as ``table`` to the end record.

    Otherwise readers differ: Python uses the table before the end record, PyTorch the offset in the record.
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


def _scan_archive(archive: zipfile.ZipFile, path: Path) -> RefusedPickleError | None:
    """Return why the archive's pickle is refused, or None."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it is not a PyTorch archive")
    data = f"{pickles[0].partition('/')[0]}/data/"
    records = {e.filename.removeprefix(data): e.file_size for e in archive.infolist() if e.filename.startswith(data)}
    contents = archive.read(pickles[0])
    # PyTorch has its own archive reader. Both readers must find the same pickle.
    with utf8_path(path) as source:
        torch_contents = PyTorchFileReader(source).get_record("data.pkl")
    if torch_contents != contents:
        raise ValueError("PyTorch and Python read different pickles from it")
    try:
        scan = PickleScan(path.stat().st_size, records)
        scan.interpret(io.BytesIO(contents))
    except RefusedPickleError as refused:
        return refused
    return None


def _is_tar(path: Path) -> bool:
    try:
        # PyTorch does not open a compressed archive, which could expand to any size.
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:"):
            return True
    except tarfile.TarError:
        return False


def _scan_old_format(path: Path) -> RefusedPickleError | None:
    """Return why a file in the format of PyTorch before 1.6, a sequence of pickles, is refused, or None."""
    try:
        if _is_tar(path):
            raise ValueError("it is a tar archive, PyTorch's format before version 0.4, which can run code")
        with open_regular(path) as stream:
            scan = PickleScan(path.stat().st_size)
            if scan.interpret(stream) != MAGIC_NUMBER:
                raise ValueError("it does not start like a PyTorch file")
            for _ in ("protocol", "system", "contents"):
                scan.interpret(stream)
            storage_keys = scan.interpret(stream)  # PyTorch leaves storages that are not listed uninitialized
            if not isinstance(storage_keys, ObjectStub) or set(storage_keys.items) != scan.storages.keys():
                raise ValueError("it does not hold the storages that it names")
    except RefusedPickleError as refused:
        return refused
    except Exception as error:  # malformed bytes can raise anything
        raise DamagedError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from None
    return None
