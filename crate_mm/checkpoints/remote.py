"""Resolve checkpoint names: paths, https addresses, files on the Hugging Face Hub, and names of published weights.

Downloads are untrusted input: they are only stored here, and only ``open_checkpoint`` opens them.
"""

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..io.files import FileLock, atomic_file, home, write_whole
from ..io.log import print_log
from ..io.untrusted import sanitized, sanitized_url
from ..registry import suggest
from .download import Bounded, download, file_name, hash_file
from .readers.safetensors import WEIGHTS
from .validate import CheckpointError, first_line
from .zoo import PUBLISHED, Published

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # a single letter is a Windows drive
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([^@/]+))?/([^@]+?)(?:@([^@]+))?")
HUB_PAGE = re.compile(r"https://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)/blob/([^/]+)/([^?]+)")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # hash of a file or commit on the Hub
NO_HASH = "its hash is unknown: append #sha256=<hash> to the address, or give the path of a local file"
FORMS = "a checkpoint is a path, https://host/file, hf://owner/repo/file or the name of published weights"


class HubFile(NamedTuple):
    """A file on the Hub: repository ('owner/name'), path in it, and branch, tag or commit (None: main branch)."""

    repo: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}/{self.file}{f'@{self.revision}' if self.revision else ''}"


def locate(name: str | os.PathLike) -> Path:
    """Return the local path of a checkpoint's name, downloading the file if needed (see ``ensure_local``).

    Raises:
        CheckpointError: the file does not exist or is not a regular file.
    """
    path = ensure_local(name)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {problem}{_nearby(path)}")
    return path


def _nearby(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path())
    names = sorted(p.name for p in folder.glob("*.pth"))
    return f"; {folder} holds {', '.join(names[:5])}" if names else ""


def ensure_local(name: str | os.PathLike) -> Path:
    """Return the local path of a checkpoint's name, downloading the file unless it is cached.

    If several processes need the same file, one downloads it and the others wait for its lock.

    Args:
        name: one of
            - a path, returned unchanged even if it does not exist; for a folder that
              ``HubModel.save_pretrained`` wrote, the weights file in it;
            - ``https://host/file``, cached in ``torch.hub.get_dir()``;
            - 'hf://owner/repo/file[@revision]', cached in the Hub's own cache;
            - a name of ``PUBLISHED``.
            '#sha256=<hash>' after an address requires that hash.

    Raises:
        CheckpointError: the name has none of these forms, the download failed, or the hash is wrong. A file with a
            wrong hash is deleted.
    """
    text = os.fspath(name)
    scheme = SCHEME.match(text)
    if scheme and (scheme[1].lower() in ("https", "http", "hf") or not os.path.exists(text)):
        return _fetch(text)
    path = Path(home(text))
    if path.is_dir() and text not in PUBLISHED:
        return path / WEIGHTS if (path / WEIGHTS).is_file() else path
    if (os.path.lexists(path) and not path.is_dir()) or not re.fullmatch(r"\w[\w-]*", text):
        return path
    if text not in PUBLISHED:
        raise CheckpointError(
            f"checkpoint {sanitized_url(text)} does not exist, and no published weights have this name: "
            f"{suggest(text, list(PUBLISHED))}"
        )
    return PUBLISHED[text].file or _fetch_published(text, PUBLISHED[text])


def _fetch_published(name: str, weights: Published) -> Path:
    if weights.address is None:
        raise CheckpointError(
            f"the weights {name} cannot be downloaded: {weights.no_url_reason}; download the file by hand, see "
            f"{weights.page}, and give its path"
        )
    try:
        path = _fetch(f"{weights.address}#sha256={weights.sha256}" if weights.sha256 else weights.address)
    except CheckpointError as error:
        raise CheckpointError(f"the weights {name} of {weights.page}: {error}") from None
    license_name = weights.licence or f"unknown, see {weights.page}"
    check = "verified its published SHA-256" if weights.sha256 else "unverified, because its authors publish no hash"
    print_log(f"{name} is {weights.address}; license: {license_name}; {check}", "current", logging.INFO)
    return path


def _fetch(text: str) -> Path:
    """Return the cached file of an address; raise ``CheckpointError`` if the address is not valid."""
    address, _, fragment = text.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if fragment and not (fragment.startswith("sha256=") and re.fullmatch(r"[0-9a-f]{64}", digest)):
        raise CheckpointError(f"{sanitized_url(text)}: expected sha256=<64 hexadecimal digits> after #")
    scheme, _, rest = address.partition(":")
    scheme = scheme.lower()
    if scheme in ("https", "http", "hf") and not rest.startswith("//"):
        raise CheckpointError(
            f"{sanitized_url(text)} is not an address: write {scheme}:// with two slashes, as a str instead of a Path"
        )
    if scheme == "http":
        raise CheckpointError(
            f"{sanitized_url(text)}: over http, anyone on the network path can modify the file: use its https address"
        )
    if scheme == "hf":
        return hub_file(_hub_address(address), digest or None)
    if scheme != "https":
        raise CheckpointError(f"{sanitized_url(text)} cannot be read: {FORMS}")
    _check_https(address)
    return download(address, digest or None)


def _check_https(address: str) -> None:
    """Raise ``CheckpointError`` unless an address names a host and a file."""
    try:
        parts = urlsplit(address)
        problem = "" if parts.hostname and (parts.port is None or parts.port > 0) else "it names no host"
    except ValueError as error:
        raise CheckpointError(f"{sanitized_url(address)} is not an address: {error}") from None
    if parts.username or parts.password:
        # Do not show the address: the message would put the password into the log and result.json.
        raise CheckpointError("the https address contains a user name, which would appear in logs: leave it out")
    if not problem and not file_name(address):
        problem = "it names no file"
    if re.search(r"[\s\x00-\x1f\x7f]", address) or not address.isascii():
        problem = "it has characters that must be written as %XX"
    if problem:
        raise CheckpointError(f"{sanitized_url(address)} is not the address of a file: {problem}")
    page = HUB_PAGE.fullmatch(address)
    if page:
        file = HubFile(page[1], page[3], None if page[2] == "main" else page[2])
        raise CheckpointError(f"{sanitized_url(address)} is a file's web page: use {file}")


def _hub_address(address: str) -> HubFile:
    match = HUB.fullmatch(address)
    parts = [*match[3].split("/"), *(match[2] or match[4] or "main").split("/")] if match else [""]
    if not match or not all(part.strip(".") for part in parts) or (match[2] and match[4]):
        raise CheckpointError(
            f"{sanitized_url(address)} is not a file on the Hub: write hf://owner/repo/file, and append @revision for "
            "another branch, tag or commit"
        )
    return HubFile(match[1], match[3], match[2] or match[4])


def hub_file(
    source: HubFile,
    sha256: str | None = None,
    *,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the local path of a file on the Hub, from its cache or downloaded, after checking its hash.

    Args:
        source: the file on the Hub.
        sha256: the required hash; by default the hash that the Hub reports.
        force_download: download the file even if it is cached.
        token: access token; by default the token of ``hf auth login``. It is sent only to an https address.
        cache_dir: cache folder; by default the Hub's own.
        local_files_only: use only the cache.

    Raises:
        CheckpointError: huggingface_hub is not installed, the file does not exist or cannot be reached, its hash is
            wrong, or no hash is known.
    """
    path, tag = _from_hub(source, sha256, force_download, token, cache_dir, local_files_only)
    commit = path.parents[source.file.count("/")].name
    if commit != source.revision:  # a branch can move
        print_log(f"{sanitized(source)} is of commit {sanitized(commit)}", "current", logging.INFO)
    blob = path
    if path.is_symlink():  # the cache names the target by its hash, if known
        blob = path.parent / os.readlink(path)
        tag = blob.name if blob.parent.name == "blobs" and HASH.fullmatch(blob.name) else None
        if not tag and not sha256:
            raise CheckpointError(f"cannot use {sanitized(source)} from the cache: {NO_HASH}")
    expected = sha256 or tag
    if expected and not _has_hash(path, expected):
        path.unlink()
        if tag:
            blob.unlink(missing_ok=True)
        raise CheckpointError(f"{source} has a wrong hash and was deleted: expected {expected}")
    return path


def hub_token(token: str | bool | None = None) -> str | bool | None:
    """Return the token to send to the Hub; False for http, because anyone on the network path could read the token."""
    return token if _hub_url().startswith("https://") else False


def _from_hub(
    source: HubFile,
    sha256: str | None,
    force: bool,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local: bool,
) -> tuple[Path, str | None]:
    """Return the path of a file in the Hub's cache, and its hash if it was looked up on the Hub."""
    try:
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{source} needs huggingface_hub, which is not installed: pip install 'crate_mm[hub]'"
        ) from None

    def cached() -> Path:
        options = {"revision": source.revision, "cache_dir": cache_dir, "local_files_only": True}
        return Path(hf_hub_download(source.repo, source.file, **options))

    token = hub_token(token)
    note = "" if _hub_url().startswith("https://") else "; tokens are sent only to https addresses"
    login = f"(if it is private: hf auth login, or HF_TOKEN in the environment{note})"
    try:
        if local:
            return cached(), None
        if HASH.fullmatch(source.revision or "") and not force:  # a commit does not change
            with suppress(errors.LocalEntryNotFoundError):
                return cached(), None
        try:
            metadata = get_hf_file_metadata(hf_hub_url(*source[:2], revision=source.revision), token=token)
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception as error:  # if the Hub does not answer for any reason, use the cache
            if not force:
                with suppress(errors.LocalEntryNotFoundError):
                    return cached(), None
            if isinstance(error, errors.RepositoryNotFoundError):
                raise
            raise errors.LocalEntryNotFoundError(str(error)) from error
        return _into_cache(source, metadata, sha256, force, token, cache_dir)
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        reason = f"request access on its page, {_hub_url()}/{source.repo}, and log in {login}"
    except errors.RepositoryNotFoundError:
        reason = f"{_hub_url()} has no repository {source.repo} {login}"
    except errors.RevisionNotFoundError:
        reason = f"the repository has no branch, tag or commit {sanitized(source.revision)}"
    except errors.LocalEntryNotFoundError as error:
        cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
        reason = f"it is not in the cache, and {_hub_url()} is unreachable or offline mode is on{cause}"
    except errors.EntryNotFoundError:
        reason = f"the repository has no file {sanitized(source.file)}"
    except Exception as error:  # from the library, its HTTP client or the system
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise CheckpointError(f"{sanitized(source)} cannot be downloaded: {reason}")


def _into_cache(
    source: HubFile,
    metadata: Any,
    sha256: str | None,
    force: bool,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> tuple[Path, str]:
    """Download a file into the Hub library's cache unless it is already there.

    The library's own download is not used: it builds paths from the tag and commit that a server reports, unvalidated.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    tag, commit = (metadata.etag or "").lower(), (metadata.commit_hash or "").lower()
    tag = tag if HASH.fullmatch(tag) else sha256
    if not HASH.fullmatch(commit):
        raise CheckpointError(
            f"cannot download {sanitized(source)}: {_hub_url()} reports no valid commit, so it is not a Hub: check "
            "HF_ENDPOINT"
        )
    if not tag:
        raise CheckpointError(f"cannot download {sanitized(source)} from {_hub_url()}: {NO_HASH}")
    store = Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / f"models--{source.repo.replace('/', '--')}"
    path, blob = store / "snapshots" / commit / source.file, store / "blobs" / tag
    if force or not path.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(blob.with_name(".lock")):  # one process downloads, the others wait
            if force or not blob.exists():
                with atomic_file(blob) as file:
                    http_get(
                        hf_hub_url(*source[:2], revision=commit),
                        Bounded(file, metadata.size, source),
                        headers=build_hf_headers(token=token),
                        expected_size=metadata.size,
                        displayed_filename=source.file,
                    )
            _link(path, blob)
    name = store / "refs" / (source.revision or "main")
    if name.name != commit and not (name.is_file() and name.read_text() == commit):
        with suppress(OSError):  # the cache may be read-only
            write_whole(name, commit.encode())
    return path, tag


def _link(path: Path, blob: Path) -> None:
    """Link a path in the Hub's cache to a blob; move the file if the system has no links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        os.replace(blob, path)


def _hub_url() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _has_hash(path: Path, expected: str) -> bool:
    """Return whether a file has the expected hash: 64 digits are its SHA-256, 40 its SHA-1 or its Git blob hash."""
    if len(expected) == 64:
        return hash_file(path, hashlib.sha256()) == expected
    hashes = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha1()
    return expected in (hash_file(path, sha1) for sha1 in hashes)


local_file = ensure_local  # its former name, for scripts
