"""Test server with the tested parts of the Hub's protocol (repositories, files, uploads) and with plain files.

    with HubServer() as server:
        server.repos["me/model"] = {"main": {"model.safetensors": b"..."}}
        server.address  # value for HF_ENDPOINT

Files named in ``lfs`` are sent like the Hub's large files: identified by SHA-256, with a redirect to another host.
``/plain/<name>`` is a file of ``plain``, sent like on any web server.
"""

import base64
import hashlib
import json
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubServer:
    """Server on a free port of this machine, running within its ``with`` block.

    ``cut`` lists the numbers of bytes after which the next responses break off; ``requests`` records all requests.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.lfs: set[str] = set()
        self.gated: set[str] = set()
        self.plain: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.types: dict[str, str] = {}
        self.tagged, self.read_only = True, False
        self.pause_s = 0.0  # before a file is sent
        self.cut: list[int] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: list[str | None] = []  # of all requests
        self.swapped: dict[str, bytes] = {}  # SHA-256 of a large file -> content to send instead
        self.raw: dict[str, bytes] = {}  # path -> complete response
        self.lies: dict[str, str] = {}  # Hub headers that replace the true headers
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        scheme, host = ("https", "localhost") if certificate else ("http", "127.0.0.1")
        self.address = f"{scheme}://{host}:{self.http.server_port}"
        self.elsewhere = f"{scheme}://localhost:{self.http.server_port}"  # another host, as for the Hub's large files

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()

    def asked(self, method: str, path: str) -> list[str | None]:
        """Return the ranges of all requests whose path ends in ``path``, in order."""
        return [ranged for how, what, ranged in self.requests if how == method and what.endswith(path)]

    def commit(self, repo: str, revision: str) -> str:
        """Return a commit hash, made from the files of a revision."""
        files = self.repos[repo][revision]
        return hashlib.sha1(repr(sorted((n, hashlib.sha1(c).digest()) for n, c in files.items())).encode()).hexdigest()


def git_hash(contents: bytes) -> str:
    """Return the hash of a Git blob."""
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.hub.tokens.append(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        if path in self.hub.raw:
            self.close_connection = True
            return self.wfile.write(self.hub.raw[path])
        if path in self.hub.redirects:
            return self.answer(302, b"", Location=self.hub.redirects[path])
        if path.startswith("/plain/"):
            name = path.removeprefix("/plain/")
            if name not in self.hub.plain:
                return self.answer(404, b"none")
            tag = {"ETag": f'"{git_hash(self.hub.plain[name])}"'} if self.hub.tagged else {}
            kind = self.hub.types.get(name, "application/octet-stream")
            return self.file(self.hub.plain[name], **{"Content-Type": kind, **tag})
        if path.startswith("/large/"):
            digest = path.removeprefix("/large/")
            everything = [
                c for revisions in self.hub.repos.values() for files in revisions.values() for c in files.values()
            ]
            found = next(c for c in everything if hashlib.sha256(c).hexdigest() == digest)
            return self.file(self.hub.swapped.get(digest, found), ETag=f'"{digest}"')
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
        if about and about[1] in self.hub.repos:
            return self.json({"id": about[1], "sha": self.hub.commit(about[1], about[2]), "xetEnabled": False})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not found:
            return self.answer(404, b"no such page")
        return self.resolve(*found.groups())

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if repo in self.hub.gated:
            return self.refuse(403, "GatedRepo", "ask for it")
        if repo not in self.hub.repos:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        revisions = self.hub.repos[repo]
        revision = next((r for r in revisions if revision in (r, self.hub.commit(repo, r))), None)
        if revision is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        told = {"X-Repo-Commit": self.hub.commit(repo, revision)}
        contents = revisions[revision].get(name)
        if contents is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", **{**told, **self.hub.lies})
        if name in self.hub.lfs:
            digest = hashlib.sha256(contents).hexdigest()
            told |= {"X-Linked-Size": str(len(contents)), "X-Linked-ETag": f'"{digest}"'}
            return self.answer(302, b"", Location=f"{self.hub.elsewhere}/large/{digest}", **told)
        return self.file(contents, **{"ETag": f'"{git_hash(contents)}"', **told, **self.hub.lies})

    def do_POST(self) -> None:
        self.hub.requests.append((self.command, self.path, None))
        self.hub.tokens.append(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if self.hub.read_only:
            return self.answer(403, json.dumps({"error": "You may not write here"}).encode())
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = (
                f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else f"me/{wanted['name']}"
            )
            self.hub.repos.setdefault(name, {"main": {}})
            return self.json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path)
        if not found or found[1] not in self.hub.repos:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if found[2] == "preupload":
            files = json.loads(body)["files"]
            return self.json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.hub.repos[found[1]].setdefault(found[3], {})[value["path"]] = base64.b64decode(value["content"])
        commit = self.hub.commit(found[1], found[3])
        return self.json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.address}/{found[1]}/commit/{commit}"}
        )

    def json(self, value: dict) -> None:
        self.answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def refuse(self, code: int, kind: str, message: str, **headers: str) -> None:
        self.answer(code, b"", **{"X-Error-Code": kind, "X-Error-Message": message, **headers})

    def file(self, contents: bytes, **headers: str) -> None:
        """Send a file, or the requested range of the file."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        same = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if not asked or not same:
            return self.answer(200, contents, **{"Accept-Ranges": "bytes", **headers})
        first, total = int(asked[1]), len(contents)
        if first >= total:
            return self.answer(416, b"", **{"Content-Range": f"bytes */{total}"})
        told = {"Content-Range": f"bytes {first}-{total - 1}/{total}"}
        return self.answer(206, contents[first:], **told, **headers)

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if code in (200, 206) and self.hub.pause_s:
            time.sleep(self.hub.pause_s)
        if code in (200, 206) and self.command == "GET" and self.hub.cut:
            body = body[: self.hub.cut.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
