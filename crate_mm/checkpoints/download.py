"""Download a file over https; an interrupted download resumes at the next call."""

import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import stat
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from rich.progress import wrap_file

import crate_mm

from ..io.files import FileLock
from ..io.log import print_log
from ..io.progress import live_console
from ..io.untrusted import read_json, sanitized, sanitized_url
from .validate import CheckpointError

MAX_DOWNLOAD_BYTES = 2**36
MAX_UNANNOUNCED_BYTES = 2**33  # if the server does not announce the length
TAG = re.compile(r'"[!#-~]{1,200}"')  # a strong ETag
TIMEOUT_S = 60  # for the response, and for each further block


def download(address: str, sha256: str | None = None) -> Path:
    """Return the cached file of an https address, downloading it if needed.

    The cache is in ``torch.hub.get_dir()``, with one folder per address.

    Args:
        address: ``https://host/file``.
        sha256: the required hash, in hexadecimal digits.

    Raises:
        CheckpointError: the download failed or is incomplete, the file is a web page, or its hash is wrong.
    """
    folder = Path(torch.hub.get_dir()) / "crate_mm" / hashlib.sha256(address.encode()).hexdigest()[:20]
    target = folder / file_name(address)
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):  # one process downloads, the others wait
                if not target.exists():
                    _download(address, target)
        except CheckpointError:
            raise
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{sanitized_url(address)} cannot be stored in {sanitized(folder)}: {error}"
            ) from None
    if sha256 is not None:
        digest = hash_file(target, hashlib.sha256())
        if digest != sha256:
            target.unlink(missing_ok=True)
            raise CheckpointError(
                f"{sanitized_url(address)} has a wrong SHA-256 and was deleted: expected {sha256}, got {digest}"
            )
    return target


def file_name(address: str) -> str:
    """Return the name under which an address's file is stored; '' if the address names no file.

    A long name is shortened at its start, because the extension determines how the file is read.
    """
    return re.sub(r"[^\w.+-]", "_", unquote(urlsplit(address).path).rpartition("/")[2])[-100:].strip(".")


def hash_file(path: Path, total: "hashlib._Hash") -> str:
    """Update a hash with a file's contents and return its hexadecimal digits."""
    with open(path, "rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def _download(address: str, target: Path) -> None:
    part, tag_path = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    try:
        with _own_file(part) as file, _own_file(tag_path) as tag_file:
            _receive(address, file, tag_file, target.name)
        os.replace(part, target)
    finally:
        if not part.exists() or not part.stat().st_size:  # nothing to resume
            part.unlink(missing_ok=True)
            tag_path.unlink(missing_ok=True)


def _own_file(path: Path) -> IO[bytes]:
    """Open a partial file with a predictable name for reading and writing.

    Anything at the path that is not this user's regular file (a link, a pipe, another user's file) is deleted first.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # open() would block on a pipe
    with suppress(OSError):
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        status = os.fstat(file.fileno())
        own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and own:
            return file
        file.close()
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, flags | os.O_EXCL, 0o666), "r+b", buffering=0)


def _receive(address: str, file: IO[bytes], tag_file: IO[bytes], name: str) -> None:
    """Download into a file, or resume the file's partial download; ``tag_file`` stores its ETag.

    If the download cannot be resumed later, the file is left empty.
    """
    start, tag = file.seek(0, os.SEEK_END), _read_tag(tag_file)
    headers = {"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {}
    try:
        with _open(address, headers) as response:
            total = response.headers.get("Content-Length", "")
            total = int(total[:18]) if total.isascii() and total.isdigit() else None  # 18 digits exceed any limit
            if response.status == 206:
                match = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
                if not headers or not match or int(match[1]) != start:
                    raise CheckpointError(
                        f"{sanitized_url(address)} cannot be downloaded: its server sends another range than requested"
                    )
                total = int(match[2]) if match[2] != "*" else None if total is None else start + total
            else:
                start = 0
            if response.headers.get_content_type() == "text/html":
                raise CheckpointError(f"{sanitized_url(address)} is a web page: use the address of the file itself")
            bounded = Bounded(file, total, address)
            _write_tag(tag_file, response.headers.get("ETag", ""))
            size = "" if total is None else f" ({total / 1e6:.1f} MB)"
            print_log(f"downloading {sanitized_url(address)}{size}", "current", logging.INFO)
            file.truncate(file.seek(start))
            response.read = response.read1  # read() would read everything at once after a chunk length of -1
            with _progress(response, start, total, name) as body:
                shutil.copyfileobj(body, bounded, 2**20)
            os.fsync(file.fileno())
    except HTTPError as error:
        file.truncate(0)
        if headers and error.code == 416:  # the partial file is complete, or longer than the current file
            return _receive(address, file, tag_file, name)
        raise CheckpointError(f"{sanitized_url(address)} cannot be downloaded: {_answer(error)}") from None
    except CheckpointError:
        raise
    # An invalid host name, redirect address or header raises ValueError.
    except (URLError, ssl.SSLError, TimeoutError, ConnectionError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        why = str(reason).partition("?")[0]  # an invalid address may contain a signature in its query
        cause = f"{type(reason).__name__}: {why}" if why else type(reason).__name__
        raise CheckpointError(
            f"{sanitized_url(address)} is not in the cache, and the download failed: {sanitized(cause)}"
        ) from None
    except OSError:  # on a full disk, free the space of the partial file
        file.truncate(0)
        raise
    size = file.tell()
    if total is not None and size != total:
        raise CheckpointError(
            f"{sanitized_url(address)}: incomplete download, {size:,} of {total:,} bytes: run the command again; it "
            "resumes if the server supports it"
        )


def _read_tag(tag_file: IO[bytes]) -> str | None:
    """Return the ETag of the partial download, or None."""
    try:
        tag_file.seek(0)
        tag = read_json(tag_file.read(2**16))["etag"]
        return tag if TAG.fullmatch(tag) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_tag(tag_file: IO[bytes], tag: str) -> None:
    tag_file.truncate(tag_file.seek(0))
    tag_file.write(json.dumps({"etag": tag if TAG.fullmatch(tag) else ""}).encode())


class Bounded:
    """Writable file that accepts at most the announced number of bytes, because a stream may be endless.

    Args:
        file: the file to write to.
        announced: the length that the server announced, or None.
        name: the download's name, for messages.

    Raises:
        CheckpointError: the announced length is too large, or more bytes are written.
    """

    def __init__(self, file: IO[bytes], announced: int | None, name: Any) -> None:
        self._file, self._max_bytes, self._name = file, MAX_UNANNOUNCED_BYTES if announced is None else announced, name
        if not 0 <= self._max_bytes <= MAX_DOWNLOAD_BYTES:
            raise CheckpointError(
                f"{sanitized_url(name)} cannot be downloaded: its server announces {announced:,} bytes, the limit is "
                f"{MAX_DOWNLOAD_BYTES:,}: download it by hand and give its path"
            )

    def write(self, block: bytes) -> int:
        if self._file.tell() + len(block) > self._max_bytes:
            self._file.truncate(0)
            raise CheckpointError(
                f"{sanitized_url(self._name)} cannot be downloaded: its server sends more than {self._max_bytes:,} "
                "bytes, the announced length or, if there is none, the limit"
            )
        remaining = memoryview(block)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]
        return len(block)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _HttpsRedirectHandler(HTTPRedirectHandler):
    """Redirect handler that follows only https addresses."""

    def redirect_request(self, request, answer, code, message, headers, address):
        if urlsplit(address).scheme != "https":
            raise CheckpointError(
                f"{sanitized_url(request.full_url)} cannot be downloaded: it redirects to {sanitized_url(address)}, "
                "which is not https"
            )
        return super().redirect_request(request, answer, code, message, headers, address)


def _open(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    agent = {"User-Agent": f"crate_mm/{crate_mm.__version__}", "Accept-Encoding": "identity"}
    return build_opener(_HttpsRedirectHandler).open(Request(address, headers={**agent, **headers}), timeout=TIMEOUT_S)


def _progress(response: IO[bytes], start: int, total: int | None, name: str) -> AbstractContextManager[IO[bytes]]:
    console = live_console(sys.stderr)
    if total is None or console is None:
        return nullcontext(response)
    return wrap_file(response, total - start, description=sanitized(name), console=console)


def _answer(error: HTTPError) -> str:
    if error.code in (401, 403):
        return f"its server requires a login ({error.code}): download it by hand and give its path"
    if error.code in (404, 410):
        return f"there is no such file ({error.code})"
    return f"its server responds with {error.code} ({sanitized(error.reason)})"
