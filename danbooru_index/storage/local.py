"""Storage on a file system: files whole or absent, also after a power loss; one owner.

Lance never fsyncs on a local disk, so its files are synced too, before anything names them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from danbooru_index.errors import IndexBusyError, StorageError
from danbooru_index.failpoints import reach
from danbooru_index.storage.space import free_bytes

WORTH_UNCACHING = 8 << 20  # bytes


@dataclass(frozen=True, slots=True, order=True)
class LocalStorage:
    """A file or a folder of a file system; what the verbs mean says `base.Storage`.

    Its length is that of the protocol.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalStorage:
        return LocalStorage(self.path / name)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> LocalStorage:
        return LocalStorage(self.path.parent)

    def absolute(self) -> LocalStorage:
        return LocalStorage(self.path.resolve())

    def local_path(self) -> Path:
        return self.path

    def exists(self) -> bool:
        return self.path.is_file()

    def is_folder(self) -> bool:
        return self.path.is_dir()

    def read(self) -> bytes:
        return self.path.read_bytes()

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def open_stamped(self) -> tuple[BufferedReader, tuple[int, int]]:
        file = self.path.open("rb")
        status = os.fstat(file.fileno())
        return file, (status.st_size, status.st_mtime_ns)

    def size(self) -> int:
        return self.path.stat().st_size

    def entries(self) -> list[LocalStorage]:
        return (
            [LocalStorage(path) for path in sorted(self.path.iterdir())]
            if self.path.is_dir()
            else []
        )

    def sizes(self) -> dict[str, int]:
        return dict(_sizes(str(self.path), ""))

    def make_folder(self) -> None:
        if self.path.is_dir():
            return
        try:
            self.parent.make_folder()
            self.path.mkdir(exist_ok=True)
            self.parent.sync()
        except OSError as error:
            raise StorageError(
                f"{self}: the folder cannot be made ({error.strerror or error})"
            ) from None

    def create(self, content: bytes, *, durable: bool = True) -> bool:
        if not durable:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
                return True
            return False
        temporary = self._temporary([content])
        reach("create.before_link")
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        reach("create.after_link")
        self.parent.sync()
        return True

    def replace(self, content: bytes) -> None:
        self.replace_from([content])

    def replace_from(self, blocks: Iterable[bytes | memoryview]) -> None:
        temporary = self._temporary(blocks)
        reach("replace.before_rename")
        os.replace(temporary, self.path)
        reach("replace.after_rename")
        self.parent.sync()

    def _temporary(self, blocks: Iterable[bytes | memoryview]) -> Path:
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        with temporary.open("xb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def rename(self, name: str) -> None:
        self.path.rename(self.path.with_name(name))
        self.parent.sync()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    def hide(self, witness: str) -> LocalStorage:
        return LocalStorage(self.path.rename(self.path.with_name(f".trash-{self.name}")))

    def remove_tree(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def sync_tree(self) -> None:
        for place, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another committer's temporary file
                    LocalStorage(Path(place, name)).sync()
            LocalStorage(Path(place)).sync()

    def uncache(self) -> None:
        """Drop the pages of a large file that is durable, so that they are at hand for the next
        one.

        Measured on a virtual machine whose host takes back what is free: shards of 78 MB are
        written in 0.3 s instead of 0.5 to 0.6.
        """
        if not hasattr(os, "posix_fadvise") or self.size() < WORTH_UNCACHING:
            return
        with self.open() as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def owned(self) -> contextlib.AbstractContextManager[None]:
        return _locked(self.path)

    @property
    def ownership_lapses(self) -> bool:
        return False

    def free_bytes(self) -> float:
        return free_bytes(self.path)

    def lance_options(self) -> None:
        return None


def _sizes(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """(path in the first folder, size) of every file; one that goes meanwhile counts nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path, f"{prefix}{entry.name}/")
                continue
            with contextlib.suppress(FileNotFoundError):
                yield f"{prefix}{entry.name}", entry.stat().st_size


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """A kernel's lock: it ends with its process, so a killed owner blocks nobody."""
    path = root / ".owner.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{root}: cannot be written ({error.strerror or error})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexBusyError(
                f"{root}: {_owner(path)} is at work on this index; wait for it or end it"
            ) from None
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
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
