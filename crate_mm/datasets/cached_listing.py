"""Cache for listings of large trees: one process of a machine lists a tree, and the others map the listing.

The cache is the folder ``crate_mm-<uid>`` in the directory for temporary files (``TMPDIR``). Only the user may read or
write it; otherwise listings are not cached, and the log says so. Nothing is written into the tree.

A cached listing is valid while every folder that was read for it has the same device, inode, ``mtime`` and ``ctime``
(no program can set back ``ctime``). Adding, removing or renaming a file changes these times. Two changes are missed:

- the target of a link changes from a file to a folder, or the reverse;
- on a network disk, another machine changes a folder while this machine uses its attribute cache (NFS: ``acdirmax``
  seconds, 60 by default).

A listing does not depend on file contents. Listings are cached only on ``FILE_SYSTEMS``. On other file systems, such as
object stores mounted by FUSE, folders may have no modification times, so each process lists the tree on its own.
"""

import hashlib
import json
import logging
import math
import os
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..io.files import FileLock
from ..io.log import print_log
from ..io.untrusted import check_plain, read_json, sanitized
from .listing import FolderFiles, Listing, TooManyFilesError, build_columns
from .mapped import MappedArrays, save_arrays, text_array
from .scan import IGNORED_NAMES, IMAGE_SUFFIXES, TreeScan

VERSION = 1  # file format
MIN_FILES = 20_000  # smaller trees are not cached
MAX_LISTINGS = 64
TIME_RESOLUTION = 2.0  # seconds; no supported file system has coarser times
FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay"}
FILE_SYSTEMS |= {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph"}


def listed(root: str, selection: object, walk: Callable[[TreeScan], Iterator[FolderFiles]]) -> tuple[Listing, Counter]:
    """Return the listing of a tree, and the number of excluded files by extension.

    Args:
        root: root folder of the tree.
        selection: plain data that identifies the selected files and their labels; part of the cache key.
        walk: reads the tree, records it in a ``TreeScan``, and yields the files (see ``build_columns``).
    """
    key = json.dumps([VERSION, os.path.abspath(root), IMAGE_SUFFIXES, sorted(IGNORED_NAMES), selection])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    try:
        tree_scan = TreeScan()
        return Listing(root, build_columns(root, walk(tree_scan), max_files=MIN_FILES)), tree_scan.excluded
    except TooManyFilesError:
        pass
    try:
        file = private_dir() / name
        lock = FileLock(file.with_suffix(".lock"))
        waited = _acquire(lock, root)
    except (OSError, ValueError) as error:
        print_log(f"each process lists {sanitized(root)} on its own: {sanitized(error)}", "current", logging.WARNING)
        return _list(root, walk)[:2]
    try:
        cached = _load(file, root)
        if cached is None and not waited:
            return _list_and_save(file, root, walk)
    finally:
        lock.release()
    return cached or _list(root, walk)[:2]  # cached is None if the other process could not save its listing


def private_dir() -> Path:
    """Return the cache folder.

    Raises:
        OSError: other users can access it.
    """
    if not hasattr(os, "geteuid"):
        raise OSError("files have no owners on this system")
    folder = Path(tempfile.gettempdir()) / f"crate_mm-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status, above = folder.lstat(), folder.parent.stat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise OSError(f"{folder} is not a folder that only this user can read and write")
    # A user who can rename the folder could replace it.
    open_to_others = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if open_to_others or above.st_uid not in (0, os.geteuid()):
        raise OSError(f"other users can rename files in {folder.parent}: set TMPDIR to another folder")
    return folder


def _acquire(lock: FileLock, root: str) -> bool:
    """Acquire the lock of a tree's listing; return whether another process held it."""
    if lock.acquire():
        return False
    print_log(f"waiting for another process that is listing {sanitized(root)}", "current")
    return lock.acquire(math.inf)


def _list(root: str, walk: Callable[[TreeScan], Iterator[FolderFiles]]) -> tuple[Listing, Counter, TreeScan]:
    tree_scan = TreeScan()
    return Listing(root, build_columns(root, walk(tree_scan))), tree_scan.excluded, tree_scan


def _list_and_save(file: Path, root: str, walk: Callable[[TreeScan], Iterator[FolderFiles]]) -> tuple[Listing, Counter]:
    began = time.time()
    listing, excluded, tree_scan = _list(root, walk)
    if not tree_scan.folders or not all(
        map(_has_reliable_mtimes, {status.st_dev: f for f, status in tree_scan.folders}.values())
    ):
        return listing, excluded
    for last_try in (False, True):
        changed = max(max(status.st_mtime, status.st_ctime) for _, status in tree_scan.folders)
        if changed < began - TIME_RESOLUTION:
            break
        # A change just after a folder was read might not change its times.
        if last_try or changed > time.time():
            return listing, excluded
        time.sleep(TIME_RESOLUTION)
        began = time.time()
        listing, excluded, tree_scan = _list(root, walk)
    paths = [os.fsencode(os.path.abspath(folder)) for folder, _ in tree_scan.folders]
    states = np.array([_state(status) for _, status in tree_scan.folders], np.int64)
    columns = {
        **listing.columns,
        "read": text_array(b"".join(paths)),
        "read_ends": np.cumsum([len(path) for path in paths], dtype=np.int64),
        "states": states.reshape(-1),
        "left_out": text_array(json.dumps(excluded)),
    }
    try:
        save_arrays(file, columns)
        _delete_oldest(file.parent)
        return _load(file, root) or (listing, excluded)
    except OSError as error:  # such as a full disk
        print_log(f"could not cache the listing of {sanitized(root)}: {sanitized(error)}", "current", logging.WARNING)
        return listing, excluded


def _load(file: Path, root: str) -> tuple[Listing, Counter] | None:
    """Return the cached listing if it exists, is intact and matches the tree; else None."""
    try:
        columns = MappedArrays(file)
        begin, states = 0, columns["states"].reshape(-1, STATES)
        for end, state in zip(columns["read_ends"].tolist(), states.tolist(), strict=True):
            folder = columns["read"][begin:end].tobytes()
            if _state(os.stat(folder)) != state:
                return None
            begin = end
        excluded = read_json(columns["left_out"].tobytes())
        check_plain(excluded)
        return Listing(root, columns), Counter(excluded)
    except Exception:  # the file is missing, damaged or of another version, or a folder was deleted
        return None


STATES = 4


def _state(status: os.stat_result) -> list[int]:
    """Return the identity of a folder and its modification times, as signed 64-bit integers."""
    numbers = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return [(number + 2**63) % 2**64 - 2**63 for number in numbers]


def _has_reliable_mtimes(folder: str) -> bool:
    """Return whether a folder is on one of ``FILE_SYSTEMS`` (Linux; elsewhere False)."""
    real, mount_point, file_system = os.path.realpath(folder), "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                point = before.split()[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(mount_point):  # of two mounts at one point, the later one is visible
                    mount_point, file_system = point, after.split()[0]
    except OSError:
        return False
    return file_system in FILE_SYSTEMS


def _delete_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_LISTINGS]:
        file.unlink(missing_ok=True)
