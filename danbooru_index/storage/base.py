"""The Storage protocol: what an index needs of the place where it is kept.

A Storage is a location, of a file or of a folder, on a disk or in an object store; the next store
is one more class. Errors are OSErrors, as of files: FileNotFoundError where there is nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self


class Storage(Protocol):
    """A location. `str` of it is what a user typed, what Lance opens, and what messages say."""

    @property
    def name(self) -> str: ...

    @property
    def parent(self) -> Self: ...

    def __truediv__(self, name: str) -> Self: ...

    def absolute(self) -> Self:
        """The same location, whatever the working directory of who asks."""

    def local_path(self) -> Path | None:
        """The location in a file system; None where there is none."""

    # ---- reading ----

    def exists(self) -> bool:
        """Whether there is a file here."""

    def is_folder(self) -> bool:
        """Whether there is a folder here; in an object store, whether anything is under it."""

    def read(self) -> bytes: ...

    def open(self) -> BinaryIO: ...

    def open_stamped(self) -> tuple[BufferedReader, tuple[int, int]]:
        """The file, and what tells whether it is the same later: its size and a number that changes
        with its content.
        """

    def size(self) -> int: ...

    def entries(self) -> list[Self]:
        """What is directly in a folder, by name; nothing where there is no folder."""

    def sizes(self) -> dict[str, int]:
        """The sizes of all files under a folder, by path in it; empty if there is none."""

    # ---- writing: whole or not at all, and durable when the call returns ----

    def make_folder(self) -> None:
        """Create a folder and its parents; raise `StorageError` where that cannot be."""

    def create(self, content: bytes, *, durable: bool = True) -> bool:
        """Create a file, only if it is absent; return whether this call did.

        False may also mean that this call did, and an object store's reply was lost: read what is
        there.
        """

    def replace(self, content: bytes) -> None:
        """Replace a file, atomically."""

    def replace_from(self, blocks: Iterable[bytes | memoryview]) -> None:
        """`replace`, with content that comes in blocks: on a disk no more than one is held."""

    def rename(self, name: str) -> None:
        """Give a file another name in its folder."""

    def delete(self) -> None:
        """Delete a file; nothing happens where there is none."""

    def hide(self, witness: str) -> Self:
        """Make a folder unseen at once, before it is deleted: `witness`, a file in it, is what
        readers look for. Returns where it is now.
        """

    def remove_tree(self) -> None:
        """Delete a folder and all in it; what cannot be deleted stays."""

    def sync(self) -> None:
        """Make durable what others wrote: a file, or the entries of a folder."""

    def sync_tree(self) -> None:
        """`sync` every file and folder under a folder, and itself."""

    def uncache(self) -> None:
        """Let the system forget the content of a large file that nobody reads soon."""

    # ---- the place as a whole ----

    def owned(self) -> AbstractContextManager[None]:
        """Own the index here inside the block; raise `IndexBusyError` if another process does."""

    @property
    def ownership_lapses(self) -> bool:
        """Whether an owner may lose the index as it runs: a lease can, a kernel's lock cannot."""

    def free_bytes(self) -> float:
        """Free bytes on the disk that holds this; an object store has no end."""

    def lance_options(self) -> dict[str, str] | None:
        """What Lance needs to open a table here, beside the environment that it reads itself."""


def is_temporary(path: Storage) -> bool:
    """Whether a file had not got its name yet when its writer was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_temporary(folder: Storage) -> None:
    """Delete temporary files that killed processes left; only while none is being written."""
    for path in folder.entries():
        if is_temporary(path):
            path.delete()


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
