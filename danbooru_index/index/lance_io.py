"""Lance: panics as errors, warnings kept quiet; where a table is, how it is opened.

The only module that imports Lance: Lance reads `LANCE_LOG` when it is imported, so it must be set
before that.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("LANCE_LOG", "error")  # Lance logs two warnings for every shard
warnings.filterwarnings("ignore", message="lance is not fork-safe")

import lance as lance
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata as FragmentMetadata
from lance.fragment import write_fragments as write_fragments

from danbooru_index.errors import StorageError
from danbooru_index.index.lance_errors import lance_reason as lance_reason
from danbooru_index.index.lance_errors import panics_as_errors as panics_as_errors
from danbooru_index.index.schema import table_path
from danbooru_index.storage.base import Storage


def fragment_files(folder: Storage, fragments: list[dict[str, Any]]) -> list[Storage]:
    """The data files that fragments name, in order."""
    return [folder / "data" / file["path"] for fragment in fragments for file in fragment["files"]]


def read_fragments(folder: Storage, fragments: list[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """The rows of uncommitted fragments; raise `StorageError` for a file that is not whole."""
    for path in fragment_files(folder, fragments):
        try:
            with panics_as_errors():
                reader = LanceFileReader(str(path), storage_options=path.lance_options())
                batches = reader.read_all(batch_size=1024).to_batches()
                while (batch := next(batches, None)) is not None:
                    yield batch
        except StorageError:
            raise
        except (
            OSError,
            ValueError,
            TypeError,
            RuntimeError,
            LookupError,
            pa.ArrowException,
        ) as error:
            raise StorageError(f"{path}: cannot be read ({lance_reason(error)})") from None


def open_table(generation: Storage, name: str, version: int) -> lance.LanceDataset:
    """One table at one version; raise `StorageError` when it cannot be opened."""
    try:
        path = table_path(generation, name)
        with panics_as_errors():
            return lance.dataset(str(path), version=version, storage_options=path.lance_options())
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(
            f"{table_path(generation, name)}: cannot be opened ({lance_reason(error)})"
        ) from None
