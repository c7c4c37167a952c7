"""An index on an object store, `s3://bucket/prefix`: its objects by the names that `pathlib` has for files.

What a build needs beyond that is here too: creation only if absent and replacement only if unchanged (conditional
writes: If-None-Match, If-Match), and ownership by a lease. Credentials come from the environment or the machine, as
for Lance: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; AWS_ENDPOINT_URL for a server that is not Amazon's.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danbooru_index.errors import IndexBusyError, InstallationError, StorageError, UsageError, first_line

if TYPE_CHECKING:
    from obstore.store import S3Store

LEASE_S = 60.0
RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """What `stat` knows of an object."""

    st_size: int


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """An object, or everything under a prefix. A folder is there when an object is under it.

    Errors are OSErrors, as of files: FileNotFoundError where there is no such object.
    """

    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> ObjectPath:
        """`s3://bucket/prefix` -> a path; raise `UsageError` for another form."""
        bucket, _, key = text.removeprefix("s3://").strip("/").partition("/")
        if (
            not bucket
            or any(part in ("", ".", "..") for part in key.split("/") if key)
            or not set("#?").isdisjoint(text)
        ):
            raise UsageError(f"{text}: not of the form s3://bucket/prefix")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def relative_to(self, other: ObjectPath) -> str:
        return self.key.removeprefix(f"{other.key}/")

    def resolve(self) -> ObjectPath:
        return self

    def read_bytes(self) -> bytes:
        import obstore

        with _as_os_errors(self):
            return bytes(obstore.get(_store(self.bucket), self.key).bytes())

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.read_bytes())

    def stat(self) -> Size:
        import obstore

        with _as_os_errors(self):
            return Size(int(obstore.head(_store(self.bucket), self.key)["size"]))

    def is_file(self) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return next(self._under(1), None) is not None

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[ObjectPath]:
        """Objects and folders directly under this one."""
        import obstore

        with _as_os_errors(self):
            found = obstore.list_with_delimiter(_store(self.bucket), self._prefix())
        for key in [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]:
            yield ObjectPath(self.bucket, key)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        for entry in self._under(1000):
            if fnmatch.fnmatchcase(entry["path"].rpartition("/")[2], pattern):
                yield ObjectPath(self.bucket, entry["path"])

    def sizes(self) -> dict[str, int]:
        """The size of every object under this folder, by its path in it."""
        return {entry["path"].removeprefix(f"{self.key}/"): int(entry["size"]) for entry in self._under(1000)}

    def unlink(self, missing_ok: bool = False) -> None:
        import obstore

        with _as_os_errors(self), contextlib.suppress(FileNotFoundError):
            obstore.delete(_store(self.bucket), self.key)

    def rename(self, target: ObjectPath) -> None:
        """Copy one object, then delete it."""
        import obstore

        with _as_os_errors(self):
            obstore.copy(_store(self.bucket), self.key, target.key)
            obstore.delete(_store(self.bucket), self.key)

    def write(self, content: bytes) -> None:
        """Replace the object; S3 does so atomically and durably."""
        import obstore

        with _as_os_errors(self):
            obstore.put(_store(self.bucket), self.key, content, use_multipart=False)

    def create(self, content: bytes) -> bool:
        """Create the object if it is absent; return whether this call did. After a lost reply the client asks again
        and is told that it is there: then this returns False for an object of its own."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with _as_os_errors(self):
            try:
                obstore.put(_store(self.bucket), self.key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def swap(self, content: bytes, version: str) -> str | None:
        """Replace the object if it is still the version given (its e-tag); return the new one, None if it was not."""
        import obstore
        from obstore.exceptions import PreconditionError

        with _as_os_errors(self):
            try:
                done = obstore.put(_store(self.bucket), self.key, content, mode={"e_tag": version}, use_multipart=False)
            except PreconditionError:
                return None
        return str(done["e_tag"])

    def read_version(self) -> tuple[bytes, str]:
        """The content and its e-tag."""
        import obstore

        with _as_os_errors(self):
            found = obstore.get(_store(self.bucket), self.key)
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _under(self, chunk: int) -> Iterator[Any]:
        import obstore

        with _as_os_errors(self):
            for part in obstore.list(_store(self.bucket), self._prefix(), chunk_size=chunk):
                yield from part


Location = Path | ObjectPath


def location(text: str | Location) -> Location:
    """Where an index is: a folder of a file system, or `s3://bucket/prefix`."""
    if isinstance(text, ObjectPath):
        return text
    if isinstance(text, str) and "://" in text:
        if not text.startswith("s3://"):
            raise UsageError(f"{text}: of object stores only s3:// is known to keep its promises here")
        return ObjectPath.parse(text)
    if isinstance(text, str) and re.match("[a-z0-9]+:/", text):
        raise UsageError(f"{text}: neither a folder nor of the form s3://bucket/prefix")
    path = Path(text)
    return path.absolute() if ":" in str(path) else path  # a:b is an object store to Lance, /c/a:b is not


def storage_options(path: Location) -> dict[str, str] | None:
    """What Lance needs to open a table there, beside the environment that it reads itself."""
    return _endpoint() if isinstance(path, ObjectPath) else None


def _endpoint() -> dict[str, str]:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    if not url:
        return {}
    return {"aws_endpoint": url} | ({"allow_http": "true"} if url.startswith("http://") else {})


@lru_cache(maxsize=16)
def _store(bucket: str) -> S3Store:
    try:
        from obstore.store import S3Store
    except ModuleNotFoundError:
        raise InstallationError("s3:// needs obstore: pip install -c constraints.txt -e '.[s3]'") from None
    options: dict[str, Any] = dict(_endpoint())
    client = {"allow_http": True} if options.pop("allow_http", None) else {}
    retry = {"retry_timeout": timedelta(seconds=RETRY_S)}
    return S3Store(bucket, client_options=client, retry_config=retry, **options)


@contextlib.contextmanager
def _as_os_errors(path: ObjectPath) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from obstore.exceptions import BaseError, NotFoundError

        if isinstance(error, (FileNotFoundError, NotFoundError)):
            raise FileNotFoundError(2, "no such object", str(path)) from None
        if isinstance(error, BaseError):
            said = f"cannot be used ({first_line(error, 240)}); check the bucket, AWS_ENDPOINT_URL and the credentials"
            raise OSError(5, said, str(path)) from None
        raise


@contextlib.contextmanager
def leased(root: ObjectPath) -> Iterator[None]:
    """Own the index at `root` by a lease that is renewed; raise `IndexBusyError` while another holds it.

    A killed owner is replaced when its lease runs out, `LEASE_S` after its last renewal by the clocks of the machines.
    An owner that cannot renew in time stops as by Ctrl-C; even if it went on, nothing would be lost or doubled.
    """
    path = root / ".owner.json"
    lease = _Lease(path)
    lease.acquire(root)
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    keeper.start()
    try:
        yield
    except BaseException:
        if lease.lost:
            raise StorageError(
                f"{root}: this process no longer owns the index: its lease could not be renewed in {LEASE_S:.0f} s, or another "
                "process took it; nothing is lost: run the same command again when no other is at work"
            ) from None
        raise
    finally:
        ended.set()
        keeper.join(timeout=RETRY_S)
        lease.release()


class _Lease:
    """One holder's claim: an object that says until when, replaced only while it is still this holder's."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._holder = uuid.uuid4().hex
        self._version: str | None = None
        self._until = 0.0
        self.lost = False

    def acquire(self, root: ObjectPath) -> None:
        try:
            self._path.create(self._content(time.time() + LEASE_S))
            content, version = self._path.read_version()
        except OSError as error:
            raise StorageError(f"{root}: {error.strerror}") from None
        note = _read_note(content)
        if note["holder"] == self._holder:  # created now, even if the reply to that was lost
            self._version, self._until = version, float(note["until"])
        elif time.time() < note["until"] or not self._take(version):
            raise IndexBusyError(
                f"{root}: process {note['pid']} on {note['host']} is at work on this index; wait for it or end it "
                f"(its lease ends by itself {LEASE_S:.0f} s after it does)"
            )

    def keep(self, ended: threading.Event) -> None:
        """Renew until `ended`; when that has failed for too long, end this process's main thread as Ctrl-C does."""
        while not ended.wait(LEASE_S / 4):
            with contextlib.suppress(OSError):
                if not self._take(self._version or ""):
                    break
            if time.time() > self._until:
                break
        if not ended.is_set():
            self.lost = True
            os.kill(os.getpid(), signal.SIGINT)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._path.swap(self._content(0.0), self._version or "")

    def _take(self, version: str) -> bool:
        """Make the lease this holder's, from now; a lost reply is recognised by reading it back."""
        until = time.time() + LEASE_S
        taken = self._path.swap(self._content(until), version)
        if taken is None:
            content, taken = self._path.read_version()
            if _read_note(content)["holder"] != self._holder:
                return False
        self._version, self._until = taken, until
        return True

    def _content(self, until: float) -> bytes:
        note = {"holder": self._holder, "pid": os.getpid(), "host": socket.gethostname(), "until": until}
        return json.dumps(note).encode()


def _read_note(content: bytes) -> dict[str, Any]:
    try:
        note = json.loads(content)
        return {"holder": str(note["holder"]), "pid": note["pid"], "host": note["host"], "until": float(note["until"])}
    except (ValueError, KeyError, TypeError):
        return {"holder": "", "pid": "?", "host": "?", "until": 0.0}
