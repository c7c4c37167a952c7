"""The arrays that a search reads beside the tables: files of NumPy's format, and files of values
alone, in a folder of the generation, mapped into memory where they are on a disk.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array
from danbooru_index.errors import StorageError
from danbooru_index.storage.base import Storage

FOLDER = "search-2"  # the number is that of the format
COPIED_WIDTH = 256  # values of a ColBERT vector: wider ones would double the largest table


class SavedArrays(Mapping[str, Array]):
    """The arrays of a folder by name, each opened when it is first asked for."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self._open: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._open:
            self._open[name] = _read(self._folder / f"{name}.npy")
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(n.removesuffix(".npy") for n in self._folder.sizes()))

    def __len__(self) -> int:
        return len(self._folder.sizes())


def _read(path: Storage) -> Array:
    """Raises `StorageError` for a file that is absent or no array."""
    local = path.local_path()
    try:
        if local is None:
            return np.asarray(np.load(io.BytesIO(path.read()), allow_pickle=False))
        return np.asarray(np.load(local, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise _no_array(path, error) from None


def map_rows(path: Storage, dtype: npt.DTypeLike, rows: int, width: int) -> Array:
    """A file of values and nothing else as an array [rows, width], mapped from a disk.

    Raises `StorageError` for a file that is absent or of another size.
    """
    local = path.local_path()
    try:
        size, expected = path.size(), rows * width * np.dtype(dtype).itemsize
        if local is None or size != expected:
            raise ValueError(f"{size:,} bytes, {expected:,} expected")
        if not size:
            return np.empty((rows, width), dtype)
        return np.asarray(np.memmap(local, dtype, "r", shape=(rows, width)))
    except (OSError, ValueError) as error:
        raise _no_array(path, error) from None


def _no_array(path: Storage, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())[:160]
    return StorageError(
        f"{path}: cannot be read ({reason}); danbooru-index verify says what is wrong"
    )


def save_array(folder: Storage, name: str, array: Array) -> None:
    """Write one array of a folder, whole or not at all."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    (folder / f"{name}.npy").replace(content.getvalue())


class Strings:
    """Byte strings one after another, `blob` [bytes], the first of each at `starts` [strings + 1]:
    read one at a time.
    """

    def __init__(self, blob: Array, starts: Array) -> None:
        self._blob, self.starts = blob, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._blob[self.starts[number] : self.starts[number + 1]])
