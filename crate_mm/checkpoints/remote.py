"""Checkpoints that lie elsewhere: at an https address, on the Hugging Face Hub, or under the name of published weights.

What is downloaded is a file from outside as any other is: it is stored, and opened by ``open_checkpoint`` alone.
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
from ..io.untrusted import sanitized, shown_address
from ..registry import suggest
from .download import Bounded, download, hash_file
from .readers.safetensors import WEIGHTS
from .validate import CheckpointError, first_line
from .zoo import PUBLISHED, Published

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one letter is a drive of Windows
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([^@/]+))?/([^@]+?)(?:@([^@]+))?")
HUB_PAGE = re.compile(r"https://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)/blob/([^/]+)/([^?]+)")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of a file on the Hub, or of a commit
NO_HASH = "no hash of it is known: write #sha256= and its hash behind its address, or give the path of the file"
FORMS = "a checkpoint is a path, https://host/file, hf://owner/repo/file or the name of published weights"


class HubFile(NamedTuple):
    """A file on the Hub: repository ('owner/name'), path in it, and branch, tag or commit, or None for the main one."""

    repo: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}/{self.file}{f'@{self.revision}' if self.revision else ''}"


def locate(name: str | os.PathLike) -> Path:
    """Return the file that a checkpoint's name stands for (see ``local_file``).

    Raises:
        CheckpointError: there is no such file, or it is no regular file.
    """
    path = local_file(name)
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {wrong}{_nearby(path)}")
    return path


def _nearby(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path())
    found = sorted(p.name for p in folder.glob("*.pth"))
    return f"; {folder} holds {', '.join(found[:5])}" if found else ""


def local_file(name: str | os.PathLike) -> Path:
    """The file that a checkpoint's name stands for, downloaded unless it is here already.

    Several processes that ask for one file at once download it once: the others wait for a lock beside it.

    Args:
        name: a path, which stays as it is, also where nothing is there; of a folder that ``HubModel`` has saved the
            weights are taken; 'https://host/file', which is stored in
            PyTorch's folder for downloads (``torch.hub.get_dir()``); 'hf://owner/repo/file', with '@revision' behind it
            for another than the main branch, which is stored in the Hub's own cache; or a name of ``PUBLISHED``. Behind
            an address '#sha256=' says which hash the file must have.

    Raises:
        CheckpointError: it is none of these, it cannot be downloaded, or it has another hash. The file is then not
            kept.
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
            f"checkpoint {shown_address(text)} does not exist, and no published weights have that name: "
            f"{suggest(text, list(PUBLISHED))}"
        )
    return _fetch_published(text, PUBLISHED[text])


def _fetch_published(name: str, weights: Published) -> Path:
    if weights.address is None:
        raise CheckpointError(
            f"the weights {name} cannot be downloaded: {weights.lack}; see {weights.page}, and give the path of the "
            "file where you have it"
        )
    try:
        found = _fetch(f"{weights.address}#sha256={weights.sha256}" if weights.sha256 else weights.address)
    except CheckpointError as error:
        raise CheckpointError(f"the weights {name} of {weights.page}: {error}") from None
    licence = weights.licence or f"not told here, see {weights.page}"
    told = "its SHA-256 is the published one" if weights.sha256 else "unverified, as its authors publish no hash"
    print_log(f"{name} is {weights.address}; licence: {licence}; {told}", "current", logging.INFO)
    return found


def _fetch(text: str) -> Path:
    """The file at an address; raise ``CheckpointError`` for what is none."""
    address, _, fragment = text.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if fragment and not (fragment.startswith("sha256=") and re.fullmatch(r"[0-9a-f]{64}", digest)):
        raise CheckpointError(f"{shown_address(text)}: behind # stands sha256= and 64 hexadecimal digits, or nothing")
    scheme, _, rest = address.partition(":")
    scheme = scheme.lower()
    if scheme in ("https", "http", "hf") and not rest.startswith("//"):
        raise CheckpointError(
            f"{shown_address(text)} is no address: write {scheme}://, with two slashes, as text and no Path"
        )
    if scheme == "http":
        raise CheckpointError(
            f"{shown_address(text)}: over http anybody on the way can change a file: give its https address"
        )
    if scheme == "hf":
        return hub_file(_hub_address(address), digest or None)
    if scheme != "https":
        raise CheckpointError(f"{shown_address(text)} cannot be read: {FORMS}")
    _check_https(address)
    return download(address, digest or None)


def _check_https(address: str) -> None:
    """Raise ``CheckpointError`` unless an address names a host and a file."""
    try:
        parts = urlsplit(address)
        wrong = "" if parts.hostname and (parts.port is None or parts.port > 0) else "it names no host"
    except ValueError as error:
        raise CheckpointError(f"{shown_address(address)} is no address: {error}") from None
    if parts.username or parts.password:
        # Not shown: it would be in the log, as it would be in result.json.
        raise CheckpointError("the https address has a user's name in it, which would go to logs: leave it out")
    if not wrong and (not parts.path.strip("/") or parts.path.endswith("/")):
        wrong = "it names no file"
    if re.search(r"[\s\x00-\x1f\x7f]", address) or not address.isascii():
        wrong = "it has characters that are to be written as %XX"
    if wrong:
        raise CheckpointError(f"{shown_address(address)} is no address of a file: {wrong}")
    page = HUB_PAGE.fullmatch(address)
    if page:
        file = HubFile(page[1], page[3], None if page[2] == "main" else page[2])
        raise CheckpointError(f"{shown_address(address)} is the page of a file: the file itself is {file}")


def _hub_address(address: str) -> HubFile:
    found = HUB.fullmatch(address)
    parts = [*found[3].split("/"), *(found[2] or found[4] or "main").split("/")] if found else [""]
    if not found or not all(part.strip(".") for part in parts) or (found[2] and found[4]):
        raise CheckpointError(
            f"{shown_address(address)} is no file on the Hub: write hf://owner/repo/file, and @revision "
            "behind it for another than the main branch"
        )
    return HubFile(found[1], found[3], found[2] or found[4])


def hub_file(
    wanted: HubFile,
    sha256: str | None = None,
    *,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """A file of the Hub, from its cache or downloaded, with the hash that the Hub tells of it, or the one given.

    Args:
        wanted: which.
        sha256: the hash that it must have.
        force_download: also what is in the cache.
        token: of the Hub; the one of ``hf auth login`` if not given. None is sent unless the Hub's address is https.
        cache_dir: the Hub's own if not given.
        local_files_only: take the cache, and ask for nothing.

    Raises:
        CheckpointError: huggingface_hub is not installed, or there is no such file, or it cannot be reached, or it has
            another hash, or no hash is known.
    """
    path, tag = _from_hub(wanted, sha256, force_download, token, cache_dir, local_files_only)
    commit = path.parents[wanted.file.count("/")].name
    if commit != wanted.revision:  # a branch goes on
        print_log(f"{sanitized(wanted)} is of commit {sanitized(commit)}", "current", logging.INFO)
    stored = path
    if path.is_symlink():  # to a file that the cache names by its hash, if it has one
        stored = path.parent / os.readlink(path)
        tag = stored.name if stored.parent.name == "blobs" and HASH.fullmatch(stored.name) else None
        if not tag and not sha256:
            raise CheckpointError(f"{sanitized(wanted)} is not taken from the cache: {NO_HASH}")
    expected = sha256 or tag
    if expected and not _has_hash(path, expected):
        path.unlink()
        if tag:
            stored.unlink(missing_ok=True)
        raise CheckpointError(f"{wanted} is not kept: its hash is not {expected}, which it should be")
    return path


def hub_token(token: str | bool | None = None) -> str | bool | None:
    """The token that goes to the Hub: none to an address of http, where anybody on the way could read it."""
    return token if _hub_url().startswith("https://") else False


def _from_hub(
    wanted: HubFile,
    sha256: str | None,
    force: bool,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local: bool,
) -> tuple[Path, str | None]:
    """The path of a file in the Hub's cache, and its hash where it was downloaded now."""
    try:
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{wanted} needs huggingface_hub, which is not here: pip install 'crate_mm[hub]'"
        ) from None

    def cached() -> Path:
        options = {"revision": wanted.revision, "cache_dir": cache_dir, "local_files_only": True}
        return Path(hf_hub_download(wanted.repo, wanted.file, **options))

    token = hub_token(token)
    alone = "" if _hub_url().startswith("https://") else "; a token is sent to an https address alone"
    private = f"(hf auth login, or HF_TOKEN in the environment, where it is private{alone})"
    try:
        if local:
            return cached(), None
        if HASH.fullmatch(wanted.revision or "") and not force:  # a commit, which stays as it is
            with suppress(errors.LocalEntryNotFoundError):
                return cached(), None
        try:
            metadata = get_hf_file_metadata(hf_hub_url(*wanted[:2], revision=wanted.revision), token=token)
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception as error:  # the cache is taken, of whatever the Hub does not answer
            if not force:
                with suppress(errors.LocalEntryNotFoundError):
                    return cached(), None
            if isinstance(error, errors.RepositoryNotFoundError):
                raise
            raise errors.LocalEntryNotFoundError(str(error)) from error
        return _into_cache(wanted, metadata, sha256, force, token, cache_dir)
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        why = f"its owner gives it to those who ask on its page, {_hub_url()}/{wanted.repo}, and log in {private}"
    except errors.RepositoryNotFoundError:
        why = f"{_hub_url()} has no repository {wanted.repo} {private}"
    except errors.RevisionNotFoundError:
        why = f"the repository has no branch, tag or commit {sanitized(wanted.revision)}"
    except errors.LocalEntryNotFoundError as error:
        cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
        why = f"it is not in the cache, and {_hub_url()} cannot be reached, or may not be{cause}"
    except errors.EntryNotFoundError:
        why = f"the repository has no file {sanitized(wanted.file)}"
    except Exception as error:  # the library's, its client's and the system's
        why = f"{type(error).__name__}: {first_line(error)}"
    raise CheckpointError(f"{sanitized(wanted)} cannot be downloaded: {why}")


def _into_cache(
    wanted: HubFile,
    metadata: Any,
    sha256: str | None,
    force: bool,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> tuple[Path, str]:
    """Download a file into the Hub's cache, where the Hub's library finds it, unless it is there already.

    The library's own download makes paths of whatever the server tells as the file's tag and commit.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    tag, commit = (metadata.etag or "").lower(), (metadata.commit_hash or "").lower()
    tag = tag if HASH.fullmatch(tag) else sha256
    if not HASH.fullmatch(commit):
        raise CheckpointError(
            f"{sanitized(wanted)} is not downloaded: {_hub_url()} does not tell its commit, so it is no Hub: HF_ENDPOINT "
            "says where the Hub is"
        )
    if not tag:
        raise CheckpointError(f"{sanitized(wanted)} is not downloaded: {_hub_url()}: {NO_HASH}")
    store = Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / f"models--{wanted.repo.replace('/', '--')}"
    path, stored = store / "snapshots" / commit / wanted.file, store / "blobs" / tag
    if force or not path.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(stored.with_name(".lock")):  # of several processes the first downloads
            if force or not stored.exists():
                with atomic_file(stored) as file:
                    http_get(
                        hf_hub_url(*wanted[:2], revision=commit),
                        Bounded(file, metadata.size, wanted),
                        headers=build_hf_headers(token=token),
                        expected_size=metadata.size,
                        displayed_filename=wanted.file,
                    )
            _link(path, stored)
    name = store / "refs" / (wanted.revision or "main")
    if name.name != commit and not (name.is_file() and name.read_text() == commit):
        with suppress(OSError):  # the cache may be for reading alone
            write_whole(name, commit.encode())
    return path, tag


def _link(path: Path, stored: Path) -> None:
    """Let a path in the Hub's cache lead to a file in it; where the system has no links, the file goes there itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(stored, path.parent))
    except OSError:
        os.replace(stored, path)


def _hub_url() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _has_hash(path: Path, wanted: str) -> bool:
    """Whether a file's SHA-256 is the one wanted; of 40 digits its SHA-1, as Git computes it of a file, or plainly."""
    if len(wanted) == 64:
        return hash_file(path, hashlib.sha256()) == wanted
    begun = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha1()
    return wanted in (hash_file(path, total) for total in begun)
