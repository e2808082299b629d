"""PyTorch's files: compared with their checksums, scanned for what they would run, and then read."""

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

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first thing in a file of PyTorch's format before version 1.6
# Other code bases keep the arguments of their command line in one.
PLAIN_OBJECTS = [argparse.Namespace]


def read_pth(path: Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a file of PyTorch's format; a pickle that names code is refused, and nothing of it is run.

    The memory and time that the file asks for are compared with its size first (see ``pickles``).

    Args:
        path: the file.
        map_location: the device of the tensors.
        verified: leave out the checksums, as the file is known to be what was written. The pickle is scanned anyway.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or refused.
    """
    archive = _is_archive(path)
    if archive and not zipfile.is_zipfile(path):
        raise DamagedError(f"{path} is damaged or no checkpoint: it is cut off")
    refused = check_intact(path, opens=False, sums=not verified) if archive else _scan_old_format(path)
    if refused:
        raise refusal(refused, path)
    try:
        with torch.serialization.safe_globals(PLAIN_OBJECTS), utf8_path(path) as source:
            contents = torch.load(source, map_location=map_location, weights_only=True)
    except Exception as error:  # PyTorch fails in many ways on a file that is no checkpoint
        if isinstance(error, (MemoryError, OSError)) or "allocate" in str(error):
            raise CheckpointError(f"{path} cannot be read now: {first_line(error)}") from None
        raise DamagedError(f"{path} is damaged or no checkpoint: {first_line(error)}") from None
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"{path} holds {type(contents).__name__}, not a dict with a state_dict: it is no checkpoint"
        )
    return {key: vars(value) if type(value) in PLAIN_OBJECTS else value for key, value in contents.items()}


def _is_archive(path: Path) -> bool:
    """Whether PyTorch takes the file for an archive, which it has written since version 1.6, by its first bytes."""
    with open_regular(path) as file:
        return file.read(4) == b"PK\x03\x04"


def check_intact(path: str | Path, opens: bool = True, sums: bool = True) -> RefusedPickleError | None:
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
            with torch.serialization.safe_globals(PLAIN_OBJECTS), utf8_path(path) as source:
                torch.load(source, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedError(f"{path} is damaged or no checkpoint: PyTorch cannot read it as plain data") from None
    except Exception as error:  # a changed byte in the tables is met in many ways
        raise DamagedError(f"{path} is damaged: {first_line(error)}") from None
    if damaged:
        raise DamagedError(f"{path} is damaged: its part {sanitized(damaged)} is not what was written")
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


def _scan_archive(archive: zipfile.ZipFile, path: Path) -> RefusedPickleError | None:
    """Why the archive's pickle is not read, or None."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it is no archive of PyTorch's")
    data = f"{pickles[0].partition('/')[0]}/data/"
    records = {e.filename.removeprefix(data): e.file_size for e in archive.infolist() if e.filename.startswith(data)}
    contents = archive.read(pickles[0])
    # What PyTorch's own reader, which is another one than Python's, will hand to its unpickler.
    with utf8_path(path) as source:
        seen = PyTorchFileReader(source).get_record("data.pkl")
    if seen != contents:
        raise ValueError("its pickle is another one for PyTorch than for Python")
    try:
        scan = PickleScan(path.stat().st_size, records)
        scan.follow(io.BytesIO(contents))
    except RefusedPickleError as refused:
        return refused
    return None


def _is_tar(path: Path) -> bool:
    try:
        # Not a compressed one, which may be any size, and which PyTorch does not open.
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:"):
            return True
    except tarfile.TarError:
        return False


def _scan_old_format(path: Path) -> RefusedPickleError | None:
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
            if not isinstance(stored, ObjectStub) or set(stored.items) != scan.storages.keys():
                raise ValueError("it does not hold the storages that it names")
    except RefusedPickleError as refused:
        return refused
    except Exception as error:  # bytes that are no pickle fail in many ways
        raise DamagedError(f"{path} is damaged or no checkpoint: {first_line(error)}") from None
    return None
