"""A file from an https address, whole or not at all; what was cut off is gone on with at the next call."""

import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import wrap_file

import crate_mm

from ..log import print_log
from ..untrusted import read_json, read_regular, shown
from .form import CheckpointError

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
        except OSError as error:
            raise CheckpointError(f"{shown(address)} cannot be stored in {shown(folder)}: {error}") from None
    if sha256 is not None:
        found = hash_file(target, hashlib.sha256())
        if found != sha256:
            target.unlink(missing_ok=True)
            raise CheckpointError(f"{shown(address)} is not kept: its SHA-256 is {found}, it should be {sha256}")
    return target


def hash_file(path: Path, total: "hashlib._Hash") -> str:
    """A hash, begun with whatever goes before, of a file's contents, in hexadecimal digits."""
    with open(path, "rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def _download(address: str, target: Path) -> None:
    part, about = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    begun, headers = _begun(part, about), {}
    if begun:
        headers = {"Range": f"bytes={part.stat().st_size}-", "If-Range": begun}
    try:
        with _open(address, headers) as response:
            goes_on = response.status == 206
            start = part.stat().st_size if goes_on else 0
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise CheckpointError(
                    f"{shown(address)} cannot be downloaded: its server sends another part than asked"
                )
            if response.headers.get_content_type() == "text/html":
                raise CheckpointError(f"{shown(address)} is a web page, and no file: look on it for the file's address")
            total = response.headers.get("Content-Length", "")
            total = start + int(total) if total.isascii() and total.isdigit() else None
            etag = response.headers.get("ETag", "")
            about.write_text(json.dumps({"etag": "" if etag.startswith("W/") else etag}))
            size = "" if total is None else f" ({total / 1e6:.1f} MB)"
            print_log(f"downloading {shown(address)}{size}", "current", logging.INFO)
            with open(part, "ab" if goes_on else "wb") as file, _progress(response, start, total, target.name) as body:
                shutil.copyfileobj(body, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
    except HTTPError as error:
        part.unlink(missing_ok=True)
        if begun and error.code == 416:  # nothing is left to be sent, or the part is longer than the file is now
            return _download(address, target)
        raise CheckpointError(f"{shown(address)} cannot be downloaded: {_answer(error)}") from None
    except (URLError, ssl.SSLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        told = f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
        raise CheckpointError(
            f"{shown(address)} is not in the cache, and cannot be downloaded now: {shown(told)}"
        ) from None
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise CheckpointError(
            f"{shown(address)} was cut off after {size:,} of {total:,} bytes: try again, and what is there is gone on "
            "with where the server can"
        )
    os.replace(part, target)
    about.unlink()
    return None


def _begun(part: Path, about: Path) -> str | None:
    """The server's tag of the file that an earlier download has begun with, if there is a part of it and a tag."""
    try:
        told = read_json(read_regular(about, 2**16))
        return told["etag"] or None if part.stat().st_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _StaysSecure(HTTPRedirectHandler):
    """Follow a server that sends on to another https address, and to no other kind."""

    def redirect_request(self, request, answer, code, message, headers, address):
        if urlsplit(address).scheme != "https":
            raise CheckpointError(
                f"{shown(request.full_url)} cannot be downloaded: it sends on to {shown(address)}, which is not https"
            )
        return super().redirect_request(request, answer, code, message, headers, address)


def _open(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    agent = {"User-Agent": f"crate_mm/{crate_mm.__version__}", "Accept-Encoding": "identity"}
    return build_opener(_StaysSecure).open(Request(address, headers={**agent, **headers}), timeout=WAIT_S)


def _progress(response: IO[bytes], start: int, total: int | None, name: str) -> AbstractContextManager[IO[bytes]]:
    console = Console(stderr=True)
    if total is None or not console.is_terminal or not console.file.isatty():  # as FORCE_COLOR may say of a file
        return nullcontext(response)
    return wrap_file(response, total - start, description=shown(name), console=console)


def _answer(error: HTTPError) -> str:
    if error.code in (401, 403):
        return f"its server gives it to nobody unknown ({error.code}): get it by hand, and give the path of the file"
    if error.code in (404, 410):
        return f"there is no such file ({error.code})"
    return f"its server answers {error.code} ({shown(error.reason)})"
