"""Listings of large trees are kept: one process of a machine lists a tree, and the others map what it has found.

They are kept in a folder of the user's own, ``crate_mm-<uid>`` where temporary files go (``TMPDIR`` says where), which
nobody else may read or write; else they are not kept, which the log says. Nothing is written into the tree.

A listing is used as long as every folder that was read for it is the same one with the same times of its last change
(``mtime`` and ``ctime``, which no program can set back). The system changes them where a file is added, removed or
renamed. What is not noticed:

- that the target of a link to a file becomes a folder, or the other way round;
- on a network disk, a change by another machine within the seconds (NFS: ``acdirmax``, 60 by default) in which this
  machine does not ask for folders again.

What files hold is not in a listing, so that it may change. On other file systems than ``FILE_SYSTEMS``, whose folders may
not say when they changed (object stores by FUSE), listings are not kept and each process lists for itself.
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
from .scan import IMAGE_SUFFIXES, IGNORED_NAMES, TreeScan

VERSION = 1  # of the listings' form
MIN_FILES = 20_000  # files: fewer are listed at once
MAX_LISTINGS = 64
SETTLED = 2.0  # seconds: no file system that is used here tells times less exactly
FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay"}
FILE_SYSTEMS |= {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph"}


def listed(root: str, what: object, walk: Callable[[TreeScan], Iterator[FolderFiles]]) -> tuple[Listing, Counter]:
    """The listing of a tree, and how many files of which endings are left out of it.

    Args:
        root: the tree.
        what: plain data that says which files of it are wanted, with which labels.
        walk: reads the tree, notes in a ``TreeScan`` what it reads, and gives the files (see ``build_columns``).
    """
    key = json.dumps([VERSION, os.path.abspath(root), IMAGE_SUFFIXES, sorted(IGNORED_NAMES), what])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    try:
        small = TreeScan()
        return Listing(root, build_columns(root, walk(small), most=MIN_FILES)), small.excluded
    except TooManyFilesError:
        pass
    try:
        file = private_dir() / name
        lock = FileLock(file.with_suffix(".lock"))
        waited = _acquire(lock, root)
    except (OSError, ValueError) as error:
        print_log(f"each process lists {sanitized(root)} for itself: {sanitized(error)}", "current", logging.WARNING)
        return _list(root, walk)[:2]
    try:
        found = _load(file, root)
        if found is None and not waited:
            return _list_and_save(file, root, walk)
    finally:
        lock.release()
    return found or _list(root, walk)[:2]  # which the process that was waited for could not keep


def private_dir() -> Path:
    """The folder of the listings.

    Raises:
        OSError: it is not the user's alone.
    """
    if not hasattr(os, "geteuid"):
        raise OSError("this system's files have no owners")
    folder = Path(tempfile.gettempdir()) / f"crate_mm-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status, above = folder.lstat(), folder.parent.stat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise OSError(f"{folder} is not a folder that this user alone may read and write")
    # Who may rename the folder could put another in its place.
    open_to_others = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if open_to_others or above.st_uid not in (0, os.geteuid()):
        raise OSError(f"others may rename what is in {folder.parent}; TMPDIR names another place")
    return folder


def _acquire(lock: FileLock, root: str) -> bool:
    """Wait until no other process lists the tree; whether there was one."""
    if lock.acquire():
        return False
    print_log(f"another process is listing {sanitized(root)}, whose list will be used", "current")
    return lock.acquire(math.inf)


def _list(root: str, walk: Callable[[TreeScan], Iterator[FolderFiles]]) -> tuple[Listing, Counter, TreeScan]:
    seen = TreeScan()
    return Listing(root, build_columns(root, walk(seen))), seen.excluded, seen


def _list_and_save(file: Path, root: str, walk: Callable[[TreeScan], Iterator[FolderFiles]]) -> tuple[Listing, Counter]:
    began = time.time()
    listing, excluded, seen = _list(root, walk)
    if not seen.folders or not all(
        map(_has_reliable_mtimes, {status.st_dev: f for f, status in seen.folders}.values())
    ):
        return listing, excluded
    for last_try in (False, True):
        changed = max(max(status.st_mtime, status.st_ctime) for _, status in seen.folders)
        if changed < began - SETTLED:
            break
        # A change just after a folder was read might leave it the same times.
        if last_try or changed > time.time():
            return listing, excluded
        time.sleep(SETTLED)
        began = time.time()
        listing, excluded, seen = _list(root, walk)
    paths = [os.fsencode(os.path.abspath(folder)) for folder, _ in seen.folders]
    states = np.array([_state(status) for _, status in seen.folders], np.int64)
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
    except OSError as error:  # the disk is full
        print_log(f"the list of {sanitized(root)} is not kept: {sanitized(error)}", "current", logging.WARNING)
        return listing, excluded


def _load(file: Path, root: str) -> tuple[Listing, Counter] | None:
    """A listing that was kept, if it is there, whole, and still that of the tree."""
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
    except Exception:  # it is not there, damaged or of another version; or a folder is gone
        return None


STATES = 4


def _state(status: os.stat_result) -> list[int]:
    """What changes with the entries of a folder, and which folder it is; 64 bits each, with a sign."""
    numbers = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return [(number + 2**63) % 2**64 - 2**63 for number in numbers]


def _has_reliable_mtimes(folder: str) -> bool:
    """Whether a folder's file system keeps the times at which its folders were changed (Linux)."""
    real, found = os.path.realpath(folder), ("", "")
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                point = before.split()[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(found[0]):  # the later of two at one place is the one that is seen
                    found = point, after.split()[0]
    except OSError:
        return False
    return found[1] in FILE_SYSTEMS


def _delete_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_LISTINGS]:
        file.unlink(missing_ok=True)
