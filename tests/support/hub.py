"""A tiny model hub on loopback, so that tests drive the real huggingface_hub client without a
network.

It answers what the client (2.4.0) asks when it reads a model repository, and nothing more:

    GET       /api/models/{repo}[/revision/{rev}]       model_info; sizes and hashes only with ?blobs=true
    GET       /api/models/{repo}/tree/{rev}[/{folder}]  list_repo_tree, on one page
    HEAD GET  /{repo}/resolve/{rev}/{file}              downloads, whole or from a byte offset (Range: bytes=N-[M])

A repository is a plain folder, with one branch, "main", and one commit whose name comes from the
repository's name. There is no xet and no redirect. The client reads its HF_* variables when it is
imported, so give HF_ENDPOINT, HF_HOME and the rest to a subprocess; and as it caches listings by
commit, give a changed folder a fresh HF_HOME. Unless HF_HUB_DISABLE_TELEMETRY=1, it first asks once
for /api/agent-harnesses, without a token, and ignores our 404.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK = 1 << 20
NO_HEADERS: Mapping[str, str] = {}
LFS_SUFFIXES = frozenset({".bin", ".ckpt", ".gguf", ".h5", ".onnx", ".pt", ".pth", ".safetensors"})
LFS_POINTER_SIZE = 134  # what the real hub reports for nearly every file
API = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<view>revision|tree)/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?"
)
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Hub:
    """A model hub on loopback that serves folders, and remembers what it was asked."""

    url: str
    # (method, path with its query, as sent), in order
    requests: list[tuple[str, str]] = field(default_factory=list)
    # the Authorization headers seen, in order
    authorization: list[str] = field(default_factory=list)


@contextmanager
def serve(
    repos: Mapping[str, Path], *, require_token: str | None = None, fail_with: int | None = None
) -> Iterator[Hub]:
    """Serve `repos` ("org/name" to folder) until the block ends; after that the port refuses
    connections.

    With `require_token` every request without that bearer token is answered 401; with `fail_with`
    every request is answered with that status.
    """
    server = _Server(repos, require_token, fail_with)
    thread = threading.Thread(
        target=server.serve_forever, args=(0.02,), name="test-hub", daemon=True
    )
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(repo: str) -> str:
    """Return the one commit of a repository: made up, and the same in every run."""
    return hashlib.sha1(repo.encode(), usedforsecurity=False).hexdigest()


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hex, which is also its ETag."""
    stat = file.stat()
    return _sha256(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(file: Path, _size: int, _mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _RefusalError(Exception):
    """A request to be answered with an error, told to the client as the real hub tells it."""

    def __init__(
        self, status: int, message: str, code: str | None = None, commit: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if commit is not None:
            self.headers["X-Repo-Commit"] = commit


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(
        self, repos: Mapping[str, Path], require_token: str | None, fail_with: int | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.require_token = require_token
        self.fail_with = fail_with
        self.hub = Hub(url=f"http://127.0.0.1:{self.server_port}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that hangs up is part of some tests
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what was asked is in Hub.requests."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self._record()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._admit()
            self._route()
        except _RefusalError as refusal:
            self._send_json(refusal.status, {"error": str(refusal)}, refusal.headers)

    def _record(self) -> None:
        self.server.hub.requests.append((self.command, self.path))
        if (header := self.headers.get("Authorization")) is not None:
            self.server.hub.authorization.append(header)

    def _admit(self) -> None:
        if self.server.fail_with is not None:
            raise _RefusalError(self.server.fail_with, "This hub fails every request.")
        header, token = self.headers.get("Authorization"), self.server.require_token
        if token is not None and header != f"Bearer {token}":
            anonymous = header is None
            wrong = (
                "Invalid username or password."
                if anonymous
                else "Invalid credentials in Authorization header"
            )
            raise _RefusalError(HTTPStatus.UNAUTHORIZED, wrong)
        if self.command not in {"GET", "HEAD"}:
            raise _RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, "This hub is read only.")

    def _route(self) -> None:
        path = urlsplit(self.path).path
        if match := API.fullmatch(path):
            self._send_json(HTTPStatus.OK, self._describe(match))
        elif match := RESOLVE.fullmatch(path):
            repo, files = self._find_repo(match)
            self._send_file(repo, _find_file(repo, files, unquote(match["path"])))
        else:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "This hub has no such page.")

    def _describe(self, match: re.Match[str]) -> object:
        repo, files = self._find_repo(match)
        if match["view"] == "tree":
            return _tree(
                repo, files, unquote(match["path"] or ""), recursive=self._asks("recursive")
            )
        return _model_info(repo, files, blobs=self._asks("blobs"))

    def _asks(self, flag: str) -> bool:
        return parse_qs(urlsplit(self.path).query).get(flag, [""])[-1].lower() in {"true", "1"}

    def _find_repo(self, match: re.Match[str]) -> tuple[str, dict[str, Path]]:
        repo = unquote(match["repo"])
        if repo not in self.server.repos:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "Repository not found", "RepoNotFound")
        if unquote(match["rev"] or "main") not in {"main", commit_of(repo)}:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "Invalid rev id", "RevisionNotFound")
        return repo, _files(self.server.repos[repo])

    def _send_json(
        self, status: int, body: object, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        data = json.dumps(body).encode()
        self._send_head(status, len(data), {"Content-Type": "application/json", **headers})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_file(self, repo: str, file: Path) -> None:
        size = file.stat().st_size
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "ETag": f'"{sha256_of(file)}"',
            "X-Repo-Commit": commit_of(repo),
        }
        wanted = RANGE.fullmatch(self.headers.get("Range", "")) if self.command == "GET" else None
        if wanted is None:
            self._send_bytes(HTTPStatus.OK, file, range(size), headers)
            return
        span = range(int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size))
        if not span:
            self._send_head(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, {"Content-Range": f"bytes */{size}"}
            )
            return
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        self._send_bytes(HTTPStatus.PARTIAL_CONTENT, file, span, headers)

    def _send_bytes(self, status: int, file: Path, span: range, headers: Mapping[str, str]) -> None:
        self._send_head(status, len(span), headers)
        if self.command == "HEAD":
            return
        with file.open("rb") as stream:
            stream.seek(span.start)
            for chunk in _chunks(stream, len(span)):
                self.wfile.write(chunk)

    def _send_head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")  # a kept connection would outlive the server
        self.end_headers()


def _chunks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (chunk := stream.read(min(CHUNK, length))):
        length -= len(chunk)
        yield chunk


def _files(root: Path) -> dict[str, Path]:
    return {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _find_file(repo: str, files: Mapping[str, Path], name: str) -> Path:
    if name not in files:
        raise _RefusalError(
            HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound", commit_of(repo)
        )
    return files[name]


def _model_info(repo: str, files: Mapping[str, Path], *, blobs: bool) -> dict[str, object]:
    return {
        "_id": commit_of(repo)[:24],
        "id": repo,
        "modelId": repo,
        "author": repo.partition("/")[0],
        "sha": commit_of(repo),
        "lastModified": "2024-01-01T00:00:00.000Z",
        "createdAt": "2024-01-01T00:00:00.000Z",
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [_sibling(name, file, blobs=blobs) for name, file in files.items()],
    }


def _sibling(name: str, file: Path, *, blobs: bool) -> dict[str, object]:
    if not blobs:
        return {"rfilename": name}
    size, sha256 = file.stat().st_size, sha256_of(file)
    sibling: dict[str, object] = {"rfilename": name, "size": size, "blobId": sha256[:40]}
    if file.suffix in LFS_SUFFIXES:
        sibling["lfs"] = {"sha256": sha256, "size": size, "pointerSize": LFS_POINTER_SIZE}
    return sibling


def _tree(
    repo: str, files: Mapping[str, Path], folder: str, *, recursive: bool
) -> list[dict[str, object]]:
    prefix = f"{folder}/" if folder else ""
    inside = {name: file for name, file in files.items() if name.startswith(prefix)}
    if not inside and folder:
        raise _RefusalError(
            HTTPStatus.NOT_FOUND, f"{folder} does not exist", "EntryNotFound", commit_of(repo)
        )
    folders = {parent for name in inside for parent in _parents(name) if parent.startswith(prefix)}
    entries = [_tree_folder(name) for name in sorted(folders)] + [
        _tree_file(*item) for item in inside.items()
    ]
    return [
        entry
        for entry in entries
        if recursive or "/" not in str(entry["path"]).removeprefix(prefix)
    ]


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _tree_folder(name: str) -> dict[str, object]:
    return {"type": "directory", "path": name, "size": 0, "oid": commit_of(name)}


def _tree_file(name: str, file: Path) -> dict[str, object]:
    size, sha256 = file.stat().st_size, sha256_of(file)
    entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": sha256[:40]}
    if file.suffix in LFS_SUFFIXES:
        entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": LFS_POINTER_SIZE}
    return entry
