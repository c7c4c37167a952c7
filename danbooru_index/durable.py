"""Files that are there whole or not at all, and stay so after a power loss; one owner at a time (local file system).

Lance never fsyncs on a local disk, so `sync` is called for its files too, before anything names them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danbooru_index.errors import IndexBusyError, StorageError
from danbooru_index.failpoints import reach


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably; raise `StorageError` where that cannot be."""
    if path.is_dir():
        return
    try:
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: the folder cannot be made ({error.strerror or error})") from None


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create `path` with `content`, atomically, only if it is absent; return whether this call did."""
    temporary = _temporary(path, content)
    reach("create.before_link")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    reach("create.after_link")
    sync(path.parent)
    return True


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically and durably."""
    temporary = _temporary(path, content)
    reach("replace.before_rename")
    os.replace(temporary, path)
    reach("replace.after_rename")
    sync(path.parent)


def _temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def to_checked_json(fields: dict[str, Any]) -> bytes:
    """A JSON document that ends with a checksum of its own text."""
    body = json.dumps(fields, ensure_ascii=False, indent=1)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**fields, "checksum": checksum}, ensure_ascii=False, indent=1).encode()


def from_checked_json(content: bytes) -> dict[str, Any]:
    """The fields; raise `ValueError` unless every byte is as `to_checked_json` wrote it."""
    fields = json.loads(content)
    if not isinstance(fields, dict) or fields.pop("checksum", None) is None:
        raise ValueError("no checksum")
    if to_checked_json(fields) != content:
        raise ValueError("its checksum differs: it is damaged, or was edited")
    return fields


@contextlib.contextmanager
def owned(root: Path) -> Iterator[None]:
    """Own the index at `root`; raise `IndexBusyError` when another process does.

    A lock of the kernel's: it ends with its process, however that ends, so a killed owner never blocks the next.
    """
    path = root / ".owner.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{root}: cannot be written ({error.strerror or error})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexBusyError(f"{root}: {_owner(path)} is at work on this index; wait for it or end it") from None
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(handle)


def _owner(path: Path) -> str:
    try:
        note = json.loads(path.read_text())
        return f"process {note['pid']} on {note['host']} (since {note['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
