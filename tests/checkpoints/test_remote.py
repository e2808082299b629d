"""Weights by name, from real servers on this machine: one that speaks the Hub's protocol, and one of https."""

import hashlib
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crate_mm.checkpoints import CheckpointError, open_checkpoint, remote
from crate_mm.checkpoints.remote import ensure_local
from crate_mm.checkpoints.zoo import PUBLISHED, Published
from crate_mm.registry import BACKBONES
from tests.conftest import forget_hub_library
from tests.hub_server import HubServer


def as_file(contents) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


WEIGHTS = as_file({"state_dict": {"fc.weight": torch.arange(200_000.0)}})
OTHER = as_file({"state_dict": {"fc.weight": torch.arange(200_000.0) + 1}})
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def kept(folder: Path) -> list[Path]:
    """The files that a cache keeps, but for locks and notes about the cache itself."""
    names = [p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()]
    return [p for p in names if p.name not in ("CACHEDIR.TAG", ".lock", "main") and p.suffix != ".lock"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    """A certificate for localhost that it has signed itself, with its key, in one file."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", f"{file}.key", "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_text(Path(f"{file}.key").read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
def web(certificate, monkeypatch, tmp_path):
    """A server of https whose certificate is trusted, and an empty cache."""
    with HubServer(certificate) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
        monkeypatch.setattr("torch.hub._hub_dir", None)
        server.plain["w.pth"] = WEIGHTS
        yield server


# The Hub -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_file_of_the_hub_is_opened_and_downloaded_once(hub, large):
    hub.repos["me/model"] = {"main": {"sub/w.pth": WEIGHTS}}
    hub.lfs = {"sub/w.pth"} if large else set()
    for _ in range(2):
        opened = open_checkpoint("hf://me/model/sub/w.pth")
        assert torch.equal(opened.weights["fc.weight"], torch.arange(200_000.0))
        assert opened.path == "hf://me/model/sub/w.pth", "messages and result.json name what was asked for"
    assert len(hub.asked("GET", f"/large/{SHA256}" if large else "/sub/w.pth")) == 1
    from huggingface_hub import hf_hub_download

    path = ensure_local("hf://me/model/sub/w.pth")
    assert hf_hub_download("me/model", "sub/w.pth", local_files_only=True) == str(path), "the library finds it, too"


@pytest.mark.parametrize("address", ["hf://me/model/w.pth@v2", "hf://me/model@v2/w.pth"])
def test_a_revision_is_taken(hub, address):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}, "v2": {"w.pth": OTHER}}
    assert ensure_local(address).read_bytes() == OTHER
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS


@pytest.mark.slow
def test_a_download_from_the_hub_that_is_cut_off_goes_on(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)  # else it keeps 10 MB or nothing
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    hub.cut = [300_000]
    try:
        file = ensure_local("hf://me/model/w.pth")
    except CheckpointError:  # releases before 2 go on at the next call
        file = ensure_local("hf://me/model/w.pth")
    assert file.read_bytes() == WEIGHTS
    assert hub.asked("GET", "/w.pth") == [None, "bytes=300000-"], "it was not fetched anew"


def test_what_the_hub_sends_must_have_the_hash_that_it_tells(hub, tmp_path):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    hub.lfs, hub.swapped = {"w.pth"}, {SHA256: WEIGHTS[:-1] + b"x"}
    with pytest.raises(
        CheckpointError, match=f"hf://me/model/w.pth has a wrong hash and was deleted: expected {SHA256}"
    ):
        ensure_local("hf://me/model/w.pth")
    assert kept(tmp_path / "hf_home") == []
    hub.swapped = {}
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS


def test_a_hash_that_is_given_must_be_the_files(hub, tmp_path):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    assert ensure_local(f"hf://me/model/w.pth#sha256={SHA256.upper()}").read_bytes() == WEIGHTS
    with pytest.raises(CheckpointError, match="has a wrong hash and was deleted: expected 0{64}"):
        ensure_local(f"hf://me/model/w.pth#sha256={'0' * 64}")
    assert kept(tmp_path / "hf_home") == []


def test_a_file_in_the_cache_that_has_changed_is_not_taken(hub):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    cached = ensure_local("hf://me/model/w.pth")
    cached.resolve().write_bytes(OTHER)
    with pytest.raises(CheckpointError, match="has a wrong hash and was deleted"):
        ensure_local("hf://me/model/w.pth")
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS


@pytest.mark.parametrize("leads_to", ["../../../../../marker", "{tmp_path}/marker"])
@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit"])
def test_what_a_mirror_tells_of_a_file_is_no_path(hub, tmp_path, header, leads_to):
    """The Hub's cache is named by tags and commits, which the server chooses."""
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    leads_to = leads_to.format(tmp_path=tmp_path)
    hub.lies = {header: f'"{leads_to}"' if header == "ETag" else leads_to}
    why = "its hash is unknown" if header == "ETag" else "reports no valid commit"
    with pytest.raises(CheckpointError, match=f"cannot download hf://me/model/w.pth.*: .*{why}"):
        ensure_local("hf://me/model/w.pth")
    with pytest.raises(CheckpointError, match="the repository has no file none"):
        ensure_local("hf://me/model/none")
    assert list(tmp_path.rglob("*")) == [], "nothing is written, in the cache or out of it"


def test_a_file_whose_tag_is_no_hash_is_taken_by_the_hash_that_is_given(hub):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    hub.lies = {"ETag": '"1-2-3"'}
    assert ensure_local(f"hf://me/model/w.pth#sha256={SHA256}").read_bytes() == WEIGHTS
    with pytest.raises(CheckpointError, match="cannot download .* append #sha256=<hash> to the address"):
        ensure_local("hf://me/model/w.pth")


def test_what_lies_in_the_cache_under_no_hash_is_refused_and_stays(hub, tmp_path):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    path, own = ensure_local("hf://me/model/w.pth"), tmp_path / "own.pth"
    own.write_bytes(OTHER)
    path.unlink()
    path.symlink_to(own)
    with pytest.raises(CheckpointError, match="cannot use hf://me/model/w.pth from the cache: its hash is unknown"):
        ensure_local("hf://me/model/w.pth")
    with pytest.raises(CheckpointError, match="has a wrong hash and was deleted"):
        ensure_local(f"hf://me/model/w.pth#sha256={SHA256}")
    assert own.read_bytes() == OTHER
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS


def test_a_token_is_sent_over_https_alone(hub, monkeypatch):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS
    remote.hub_file(remote.HubFile("me/model", "w.pth"), force_download=True, token="hf_given")
    assert set(hub.tokens) == {None}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    assert (remote.hub_token(), remote.hub_token("hf_given"), remote.hub_token(False)) == (None, "hf_given", False)


NOT_THERE = {
    "hf://me/model/none.pth": "hf://me/model/none.pth cannot be downloaded: the repository has no file none.pth",
    "hf://me/none/w.pth": r"cannot be downloaded: http://127.0.0.1:\d+ has no repository me/none \(if it is private",
    "hf://me/model/w.pth@v9": "cannot be downloaded: the repository has no branch, tag or commit v9",
    "hf://me/gated/w.pth": r"request access on its page, http://127.0.0.1:\d+/me/gated, and log",
}


@pytest.mark.parametrize("address", NOT_THERE)
def test_what_the_hub_has_not_is_said(hub, address):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    hub.gated.add("me/gated")
    with pytest.raises(CheckpointError, match=NOT_THERE[address]):
        open_checkpoint(address)


def test_offline_the_cache_is_taken_and_nothing_else(hub, monkeypatch):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS, "other.pth": OTHER}}
    ensure_local("hf://me/model/w.pth")
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_hub_library()
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS
    with pytest.raises(
        CheckpointError, match=r"other.pth cannot be downloaded: it is not in the cache, and http.* is unreachable"
    ):
        ensure_local("hf://me/model/other.pth")
    assert len(hub.requests) == asked, "nothing was asked for"


def test_with_the_hub_away_the_cache_is_taken(hub):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    ensure_local("hf://me/model/w.pth")
    hub.http.shutdown()
    hub.http.server_close()
    assert ensure_local("hf://me/model/w.pth").read_bytes() == WEIGHTS


def test_without_huggingface_hub_the_extra_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"needs huggingface_hub, which is not installed: pip install 'crate_mm\[hub\]'"
    ):
        open_checkpoint("hf://me/model/w.pth")


# https ---------------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_by_https_once(web):
    address = f"{web.address}/plain/w.pth"
    for _ in range(2):
        assert torch.equal(open_checkpoint(address).weights["fc.weight"], torch.arange(200_000.0))
    assert len(web.requests) == 1
    assert ensure_local(address).suffix == ".pth"
    web.plain["other/w.pth"] = OTHER
    assert ensure_local(f"{web.address}/plain/other/w.pth").read_bytes() == OTHER, "of one name, but another file"


def interrupted(web) -> str:
    """The address of a file of which 300,000 bytes have been downloaded."""
    web.cut = [300_000]
    with pytest.raises(CheckpointError, match="incomplete download"):
        ensure_local(f"{web.address}/plain/w.pth")
    return f"{web.address}/plain/w.pth"


@pytest.mark.parametrize("tagged", [True, False], ids=["the server tells a tag", "it tells none"])
def test_a_download_that_is_cut_off_is_said_and_goes_on_where_it_can(web, tmp_path, tagged):
    web.tagged, web.cut = tagged, [300_000, 100_000]
    address, total = f"{web.address}/plain/w.pth", f"{len(WEIGHTS):,}"
    for there in ("300,000", "400,000" if tagged else "100,000"):
        with pytest.raises(
            CheckpointError, match=f"incomplete download, {there} of {total} bytes: run the command again"
        ):
            ensure_local(address)
    assert ensure_local(address).read_bytes() == WEIGHTS
    wanted = [None, "bytes=300000-", "bytes=400000-"] if tagged else [None] * 3
    assert web.asked("GET", "/w.pth") == wanted
    assert kept(tmp_path / "torch_home") == [ensure_local(address)]


def test_a_file_that_has_changed_meanwhile_is_not_put_together_from_two(web):
    address = interrupted(web)
    web.plain["w.pth"] = OTHER
    assert ensure_local(address).read_bytes() == OTHER


def test_a_download_that_ended_before_its_renaming_is_taken(web):
    """The part is whole, so that the server has nothing more to send."""
    address = interrupted(web)
    next(Path(torch.hub.get_dir()).rglob("*.part")).write_bytes(WEIGHTS)
    assert ensure_local(address).read_bytes() == WEIGHTS


# What waits at a name that can be foreseen, in a folder that others may write to.
TRAPS = {
    "link": lambda path, other: path.symlink_to(other),
    "link to nothing": lambda path, other: path.symlink_to(other.with_name("made")),
    "second name": lambda path, other: path.hardlink_to(other),
    "pipe": lambda path, other: os.mkfifo(path),
}


@pytest.mark.parametrize("end", [".part", ".part.json"])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_part_follows_no_link(web, tmp_path, trap, end):
    address = interrupted(web)
    part, other = next(Path(torch.hub.get_dir()).rglob(f"*{end}")), tmp_path / "other"
    other.write_bytes(b"x")
    part.unlink()
    TRAPS[trap](part, other)
    assert ensure_local(address).read_bytes() == WEIGHTS
    assert other.read_bytes() == b"x"
    assert not (tmp_path / "made").exists()
    assert kept(tmp_path / "torch_home") == [ensure_local(address)]


def test_a_lock_follows_no_link(web, tmp_path):
    address = f"{web.address}/plain/w.pth"
    file, other = ensure_local(address), tmp_path / "other"
    file.unlink()
    other.write_bytes(b"x")
    lock = file.with_name(".lock")
    lock.unlink(missing_ok=True)
    lock.symlink_to(other)
    with pytest.raises(CheckpointError, match="cannot be stored in"):
        ensure_local(address)
    assert other.read_bytes() == b"x"


def test_a_part_with_a_tag_that_is_no_header_is_begun_anew(web):
    address = interrupted(web)
    next(Path(torch.hub.get_dir()).rglob("*.part.json")).write_text('{"etag": "\\"a\\"\\r\\nX-Other: b"}')
    assert ensure_local(address).read_bytes() == WEIGHTS
    assert web.asked("GET", "/w.pth") == [None, None]


def answered(*headers: str, code: str = "200 OK", body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code}", *headers, "\r\n"]).encode("latin1") + body


TOO_LONG = "its server sends more than 1,000,000 bytes"
NO_ANSWERS = {
    "a length of 400 digits": (
        answered(f"Content-Length: {'9' * 400}"),
        "its server announces 999,999,999,999,999,999",
    ),
    "a length of 5,000 digits": (answered(f"Content-Length: {'9' * 5000}"), "its server announces 999,999"),
    "a part that was not asked for": (
        answered("Content-Range: bytes 0-0/1", "Content-Length: 1", code="206 Partial Content", body=b"x"),
        "its server sends another range than requested",
    ),
    "an address that is none": (answered("Location: https://[::1", code="302 Found"), "Invalid IPv6 URL"),
    "a host whose name is none": (
        answered(f"Location: https://{'a' * 70}.example/w", code="302 Found"),
        "idna|label empty or too long",
    ),
    "a port that is none": (answered("Location: https://localhost:99999/w", code="302 Found"), "the download failed"),
    "no end": (answered("Connection: close", body=bytes(1_100_000)), TOO_LONG),
    "no end, in parts": (
        answered("Transfer-Encoding: chunked", body=b"".join([b"100000\r\n", bytes(2**20), b"\r\n"] * 2)),
        TOO_LONG,
    ),
    "a part of -1 bytes": (answered("Transfer-Encoding: chunked", body=b"-1\r\n" + bytes(1_100_000)), TOO_LONG),
}


@pytest.mark.parametrize("kind", NO_ANSWERS)
def test_an_answer_that_is_none_is_one_sentence_and_leaves_nothing(web, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("crate_mm.checkpoints.download.MAX_UNANNOUNCED_BYTES", 1_000_000)
    web.raw["/w.pth"], why = NO_ANSWERS[kind]
    with pytest.raises(CheckpointError, match=why) as raised:
        ensure_local(f"{web.address}/w.pth")
    assert "/w.pth" in str(raised.value)
    assert kept(tmp_path / "torch_home") == []


def test_a_part_that_is_shorter_than_the_file_is_no_end(web):
    """A server may send less than was asked for, and says how long the file is."""
    address = interrupted(web)
    told = f"Content-Range: bytes 300000-399999/{len(WEIGHTS)}", "Content-Length: 100000"
    web.raw["/plain/w.pth"] = answered(*told, code="206 Partial Content", body=WEIGHTS[300_000:400_000])
    with pytest.raises(CheckpointError, match=f"incomplete download, 400,000 of {len(WEIGHTS):,} bytes"):
        ensure_local(address)


def test_a_download_from_the_hub_ends_where_it_should(hub, tmp_path):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    address = f"/me/model/resolve/{hub.commit('me/model', 'main')}/w.pth"
    hub.raw[address] = answered("Connection: close", body=WEIGHTS + b"x")
    with pytest.raises(
        CheckpointError, match=f"hf://me/model/w.pth .*: its server sends more than {len(WEIGHTS):,} bytes"
    ):
        ensure_local("hf://me/model/w.pth")
    assert kept(tmp_path / "hf_home") == []
    hub.lies = {"Content-Length": "9" * 18}
    with pytest.raises(
        CheckpointError, match=r"hf://me/model/w.pth cannot be downloaded: its server announces 999,999"
    ):
        ensure_local("hf://me/model/w.pth")


def _fetch_on_a_full_disk(address: str, results) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    try:
        results.put(str(ensure_local(address)))
    except CheckpointError as error:
        results.put(str(error))


@pytest.mark.slow
def test_on_a_full_disk_no_part_stays(web, hub, tmp_path):
    """A limit on the size of files stands in for it."""
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    for address, why in ((f"{web.address}/plain/w.pth", "cannot be stored in"), ("hf://me/model/w.pth", "OSError")):
        process = fork.Process(target=_fetch_on_a_full_disk, args=(address, results))
        process.start()
        told = results.get(timeout=30)
        process.join(30)
        assert why in told
        assert "File too large" in told
    assert kept(tmp_path) == []


def test_a_wrong_hash_is_refused_and_the_file_goes(web, tmp_path):
    with pytest.raises(CheckpointError, match=f"has a wrong SHA-256 and was deleted: expected 0+, got {SHA256}"):
        open_checkpoint(f"{web.address}/plain/w.pth#sha256={'0' * 64}")
    assert kept(tmp_path / "torch_home") == []
    assert open_checkpoint(f"{web.address}/plain/w.pth#sha256={SHA256}").weights


def test_what_https_does_not_give_is_said(web):
    web.plain["page.pth"], web.types["page.pth"] = b"<html>", "text/html; charset=utf-8"
    with pytest.raises(CheckpointError, match=r"/plain/none.pth cannot be downloaded: there is no such file \(404\)"):
        open_checkpoint(f"{web.address}/plain/none.pth")
    with pytest.raises(CheckpointError, match=r"/plain/page.pth is a web page: use the address"):
        open_checkpoint(f"{web.address}/plain/page.pth")


def test_a_server_that_is_away_is_said(web):
    web.http.shutdown()
    web.http.server_close()
    with pytest.raises(CheckpointError, match=r"is not in the cache, and the download failed: ConnectionRefusedErr"):
        open_checkpoint(f"{web.address}/plain/w.pth")


def test_a_server_that_nobody_vouches_for_is_not_believed(web, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(CheckpointError, match=r"the download failed: SSLCertVerificationError"):
        open_checkpoint(f"{web.address}/plain/w.pth")


def test_a_server_may_send_on_to_https_alone(web, hub):
    hub.plain["w.pth"] = WEIGHTS
    web.redirects = {"/moved/w.pth": f"{web.address}/plain/w.pth", "/away/w.pth": f"{hub.address}/plain/w.pth"}
    assert ensure_local(f"{web.address}/moved/w.pth").read_bytes() == WEIGHTS
    with pytest.raises(CheckpointError, match=r"it redirects to http://127.0.0.1:\d+/plain/w.pth, which is not https"):
        ensure_local(f"{web.address}/away/w.pth")
    assert hub.requests == []


def test_what_is_downloaded_runs_no_code(web):
    """It passes the same gate as a file that is there."""

    class Evil:
        def __reduce__(self):
            return os.system, ("exit 1",)

    web.plain["evil.pth"] = as_file({"state_dict": Evil()})
    with pytest.raises(CheckpointError, match="evil.pth"):
        open_checkpoint(f"{web.address}/plain/evil.pth")


def _fetch_in_a_process(address: str, results) -> None:
    results.put(ensure_local(address).read_bytes() == WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["hub", "https"])
def test_of_several_processes_one_downloads(web, hub, where):
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    address, server = ("hf://me/model/w.pth", hub) if where == "hub" else (f"{web.address}/plain/w.pth", web)
    server.pause_s = 0.3  # within the file, so that all have asked before it is there
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    started = [fork.Process(target=_fetch_in_a_process, args=(address, results)) for _ in range(3)]
    for process in started:
        process.start()
    assert [results.get(timeout=30) for _ in started] == [True] * 3
    for process in started:
        process.join(30)
    assert len(server.asked("GET", "/w.pth")) == 1


# Names ---------------------------------------------------------------------------------------------------------------

WRONG = {
    "hf:/me/model/w.pth": "hf:/me/model/w.pth is not an address: write hf:// with two slashes",
    "https:/host/w.pth": "https:/host/w.pth is not an address: write https:// with two slashes",
    "hf://me/model": "hf://me/model is not a file on the Hub: write hf://owner/repo/file, and append @rev",
    "hf://me/model/../w.pth": "is not a file on the Hub: write hf://owner/repo/file",
    "hf://me/model@v1/w.pth@v2": "is not a file on the Hub",
    "hf://me/model/w.pth@../../v2": "is not a file on the Hub",
    "http://host/w.pth": "http://host/w.pth: over http, anyone on the network path can modify the file: use its",
    "https://": "https:// is not the address of a file: it names no host",
    "https:///w.pth": "it names no host",
    "https://host": "https://host is not the address of a file: it names no file",
    "https://host/folder/": "it names no file",
    "https://host/folder/%2E%2E#sha256=" + "0" * 64: "it names no file",
    "https://host:port/w.pth": "https://host:port/w.pth is not an address: Port",
    "https://host/my weights.pth": "it has characters that must be written as %XX",
    "https://host/w.pth#md5=1": "expected sha256=<64 hexadecimal digits> after #",
    "https://huggingface.co/me/model/blob/main/sub/w.pth": "is a file's web page: use hf://me/model/sub/w",
    "https://huggingface.co/me/model/blob/v2/w.pth": "use hf://me/model/w.pth@v2",
    "s3://bucket/w.pth": "s3://bucket/w.pth cannot be read: a checkpoint is a path, https://host/file, hf://owner/repo",
    "crate_alpha_bse_in1k": "no published weights have this name: did you mean crate_alpha_base_in1k",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_written_wrongly_gets_one_sentence(name):
    with pytest.raises(CheckpointError, match=WRONG[name]) as raised:
        open_checkpoint(name)
    assert "\n" not in str(raised.value)


def test_a_password_in_an_address_is_not_shown():
    with pytest.raises(CheckpointError, match="contains a user name") as raised:
        open_checkpoint("https://me:secret@host/w.pth")
    assert "secret" not in str(raised.value)


def test_a_signature_in_an_address_is_in_no_error_and_no_log(web, monkeypatch):
    told = []
    monkeypatch.setattr("crate_mm.checkpoints.download.print_log", lambda text, *_: told.append(text))
    signed, web.plain["text.pth"] = "?X-Signature=secret" + "0" * 300, b"text"
    web.redirects["/away.pth"] = f"http://localhost/w.pth{signed}"
    web.redirects["/broken.pth"] = f"https://localhost/w\x7f.pth{signed}"
    for name, end in (("none", ""), ("plain/text", ""), ("away", ""), ("broken", ""), ("plain/text", "#md5=1")):
        with pytest.raises(CheckpointError, match=r"\.pth") as raised:
            open_checkpoint(f"{web.address}/{name}.pth{signed}{end}")
        told.append(str(raised.value))
    assert len(told) == 6, "one is the log's"
    assert not any("secret" in text or "0" * 20 in text for text in told), told
    assert ensure_local(f"{web.address}/plain/w.pth{signed}").read_bytes() == WEIGHTS, "it is asked for with it"
    assert signed in web.requests[-1][1]


def test_a_path_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ensure_local("none.pth") == Path("none.pth")
    assert ensure_local(tmp_path / "none") == tmp_path / "none"
    assert ensure_local("~/none.pth") == Path("~/none.pth").expanduser()
    Path("crate_alpha_base_in1k").write_bytes(WEIGHTS)
    assert ensure_local("crate_alpha_base_in1k") == Path("crate_alpha_base_in1k"), (
        "a file that is there is what is meant"
    )


def test_published_weights_come_by_their_name(hub, monkeypatch):
    told = []
    monkeypatch.setattr(remote, "print_log", lambda text, *_: told.append(text))
    hub.repos["UCSC-VLAA/CRATE-alpha"] = {"main": {"torch/crate_alpha_B16.pth": WEIGHTS}}
    assert ensure_local("crate_alpha_base_in1k").read_bytes() == WEIGHTS
    commit = hub.commit("UCSC-VLAA/CRATE-alpha", "main")
    assert told[0] == f"hf://UCSC-VLAA/CRATE-alpha/torch/crate_alpha_B16.pth is of commit {commit}"
    assert "crate_alpha_base_in1k is hf://UCSC-VLAA/CRATE-alpha/torch/crate_alpha_B16.pth" in told[1]
    assert "license: unknown, see https://huggingface.co/UCSC-VLAA" in told[1]
    assert "unverified" in told[1]


def test_a_published_hash_is_compared(hub, monkeypatch):
    told = []
    monkeypatch.setattr(remote, "print_log", lambda text, *_: told.append(text))
    hub.repos["me/model"] = {"main": {"w.pth": WEIGHTS}}
    row = Published("crate_tiny", "https://a.page", "hf://me/model/w.pth", "MIT", SHA256)
    monkeypatch.setitem(PUBLISHED, "right", row)
    monkeypatch.setitem(PUBLISHED, "wrong", row._replace(sha256="0" * 64))
    assert ensure_local("right").read_bytes() == WEIGHTS
    assert "license: MIT; verified its published SHA-256" in told[-1]
    with pytest.raises(
        CheckpointError, match=r"the weights wrong of https://a.page: hf://me/model/w.pth has a wrong hash"
    ):
        ensure_local("wrong")


@pytest.mark.parametrize("name", [name for name, weights in PUBLISHED.items() if weights.address is None])
def test_weights_without_an_address_name_their_page(name):
    with pytest.raises(CheckpointError, match=f"the weights {name} cannot be downloaded: ") as raised:
        ensure_local(name)
    assert f"see {PUBLISHED[name].page}, and give its path" in str(raised.value)


def test_the_table_is_one_of_addresses_and_models():
    BACKBONES.names()
    sizes = [backbone.sizes for backbone in BACKBONES.module_dict.values() if backbone.sizes is not None]
    models = {f"{family.prefix}_{arch}" for family in sizes for arch in family.archs}
    for name, weights in PUBLISHED.items():
        if weights.file is not None:  # tests/test_weights.py
            continue
        assert weights.model is None or weights.model in models, name
        assert weights.page.startswith("https://")
        if weights.address is not None:
            remote._hub_address(weights.address)
