"""A file from an https address, whole or not at all; what was cut off is gone on with at the next call."""

import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import stat
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from rich.console import Console
from rich.progress import wrap_file

import crate_mm

from ..io.files import FileLock
from ..io.log import print_log
from ..io.untrusted import read_json, sanitized, shown_address
from .validate import CheckpointError

MOST_BYTES = 2**36  # of a file
MOST_UNTOLD_BYTES = 2**33  # of a file whose length its server does not tell
TAG = re.compile(r'"[!#-~]{1,200}"')  # a server's strong tag of a file's contents
WAIT_S = 60  # for an answer, and for each further part of the file


def download(address: str, sha256: str | None = None) -> Path:
    """The file at an https address, from the cache or downloaded.

    The cache is a folder an address in ``torch.hub.get_dir()``: files of one name from two places are two files.

    Args:
        address: https://host/file.
        sha256: the hash that the file must have, in hexadecimal digits.

    Raises:
        CheckpointError: it cannot be downloaded, it is a web page, it was cut off, or it has another hash.
    """
    folder = Path(torch.hub.get_dir()) / "crate_mm" / hashlib.sha256(address.encode()).hexdigest()[:20]
    # The end of the name says what the file is, so that it stays.
    target = folder / (re.sub(r"[^\w.+-]", "_", unquote(urlsplit(address).path).rpartition("/")[2])[-100:].strip("."))
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):  # of several processes the first downloads
                if not target.exists():
                    _download(address, target)
        except CheckpointError:
            raise
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{shown_address(address)} cannot be stored in {sanitized(folder)}: {error}"
            ) from None
    if sha256 is not None:
        found = hash_file(target, hashlib.sha256())
        if found != sha256:
            target.unlink(missing_ok=True)
            raise CheckpointError(
                f"{shown_address(address)} is not kept: its SHA-256 is {found}, it should be {sha256}"
            )
    return target


def hash_file(path: Path, total: "hashlib._Hash") -> str:
    """A hash, begun with whatever goes before, of a file's contents, in hexadecimal digits."""
    with open(path, "rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def _download(address: str, target: Path) -> None:
    part, about = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    try:
        with _own_file(part) as file, _own_file(about) as note:
            _receive(address, file, note, target.name)
        os.replace(part, target)
    finally:
        if not part.exists() or not part.stat().st_size:  # nothing that could be gone on with
            part.unlink(missing_ok=True)
            about.unlink(missing_ok=True)


def _own_file(path: Path) -> IO[bytes]:
    """Open a file whose name must be foreseeable, so that it can be gone on with, to read and write it.

    What waits there and is none of this user's own (a link, a pipe, another's file) is not followed, but removed.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would keep open() waiting
    with suppress(OSError):
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        status = os.fstat(file.fileno())
        own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and own:
            return file
        file.close()
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, flags | os.O_EXCL, 0o666), "r+b", buffering=0)


def _receive(address: str, file: IO[bytes], note: IO[bytes], name: str) -> None:
    """Download into a file, which may have a part of it already; ``note`` keeps the server's tag of what that is of.

    Where the download cannot be gone on with, the file is left empty.
    """
    start, tag = file.seek(0, os.SEEK_END), _read_tag(note)
    headers = {"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {}
    try:
        with _open(address, headers) as response:
            total = response.headers.get("Content-Length", "")
            total = int(total[:18]) if total.isascii() and total.isdigit() else None  # a longer number is too large
            if response.status == 206:
                sent = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
                if not headers or not sent or int(sent[1]) != start:
                    raise CheckpointError(
                        f"{shown_address(address)} cannot be downloaded: its server sends another part than asked"
                    )
                total = int(sent[2]) if sent[2] != "*" else None if total is None else start + total
            else:
                start = 0
            if response.headers.get_content_type() == "text/html":
                raise CheckpointError(
                    f"{shown_address(address)} is a web page, and no file: look on it for the file's address"
                )
            bounded = Bounded(file, total, address)
            _write_tag(note, response.headers.get("ETag", ""))
            size = "" if total is None else f" ({total / 1e6:.1f} MB)"
            print_log(f"downloading {shown_address(address)}{size}", "current", logging.INFO)
            file.truncate(file.seek(start))
            response.read = response.read1  # read() takes all in one where a server says that a chunk has -1 bytes
            with _progress(response, start, total, name) as body:
                shutil.copyfileobj(body, bounded, 2**20)
            os.fsync(file.fileno())
    except HTTPError as error:
        file.truncate(0)
        if headers and error.code == 416:  # nothing is left to be sent, or the part is longer than the file is now
            return _receive(address, file, note, name)
        raise CheckpointError(f"{shown_address(address)} cannot be downloaded: {_answer(error)}") from None
    except CheckpointError:
        raise
    # A ValueError is that of a host's name, of the address that a server sends on to, or of a header.
    except (URLError, ssl.SSLError, TimeoutError, ConnectionError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        why = str(reason).partition("?")[0]  # of an address that is none, whose query may be a signature
        cause = f"{type(reason).__name__}: {why}" if why else type(reason).__name__
        raise CheckpointError(
            f"{shown_address(address)} is not in the cache, and cannot be downloaded now: {sanitized(cause)}"
        ) from None
    except OSError:  # a full disk stays full as long as the part is there
        file.truncate(0)
        raise
    size = file.tell()
    if total is not None and size != total:
        raise CheckpointError(
            f"{shown_address(address)} was cut off after {size:,} of {total:,} bytes: try again, and what is there is "
            "gone on with where the server can"
        )


def _read_tag(note: IO[bytes]) -> str | None:
    """The server's tag of the file that an earlier download has begun with."""
    try:
        note.seek(0)
        tag = read_json(note.read(2**16))["etag"]
        return tag if TAG.fullmatch(tag) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_tag(note: IO[bytes], tag: str) -> None:
    note.truncate(note.seek(0))
    note.write(json.dumps({"etag": tag if TAG.fullmatch(tag) else ""}).encode())


class Bounded:
    """A file to write that takes no more bytes than were announced, or than a checkpoint has: a stream may have no end.

    Args:
        file: which is written to.
        announced: how many bytes it is to have; None if nobody says it.
        name: of what is downloaded, for messages.

    Raises:
        CheckpointError: more are announced, or written, than that.
    """

    def __init__(self, file: IO[bytes], announced: int | None, name: Any) -> None:
        self._file, self._most, self._name = file, MOST_UNTOLD_BYTES if announced is None else announced, name
        if not 0 <= self._most <= MOST_BYTES:
            raise CheckpointError(
                f"{shown_address(name)} cannot be downloaded: its server announces {announced:,} bytes, of at most "
                f"{MOST_BYTES:,}: give the path of the file where you have it"
            )

    def write(self, block: bytes) -> int:
        if self._file.tell() + len(block) > self._most:
            self._file.truncate(0)
            raise CheckpointError(
                f"{shown_address(self._name)} cannot be downloaded: more than {self._most:,} bytes are sent, which is "
                "its announced length, or the most without one"
            )
        left = memoryview(block)
        while left:
            left = left[self._file.write(left) :]
        return len(block)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _StaysSecure(HTTPRedirectHandler):
    """Follow a server that sends on to another https address, and to no other kind."""

    def redirect_request(self, request, answer, code, message, headers, address):
        if urlsplit(address).scheme != "https":
            raise CheckpointError(
                f"{shown_address(request.full_url)} cannot be downloaded: it sends on to {shown_address(address)}, "
                "which is not https"
            )
        return super().redirect_request(request, answer, code, message, headers, address)


def _open(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    agent = {"User-Agent": f"crate_mm/{crate_mm.__version__}", "Accept-Encoding": "identity"}
    return build_opener(_StaysSecure).open(Request(address, headers={**agent, **headers}), timeout=WAIT_S)


def _progress(response: IO[bytes], start: int, total: int | None, name: str) -> AbstractContextManager[IO[bytes]]:
    console = Console(stderr=True)
    if total is None or not console.is_terminal or not console.file.isatty():  # as FORCE_COLOR may say of a file
        return nullcontext(response)
    return wrap_file(response, total - start, description=sanitized(name), console=console)


def _answer(error: HTTPError) -> str:
    if error.code in (401, 403):
        return f"its server gives it to nobody unknown ({error.code}): get it by hand, and give the path of the file"
    if error.code in (404, 410):
        return f"there is no such file ({error.code})"
    return f"its server answers {error.code} ({sanitized(error.reason)})"
