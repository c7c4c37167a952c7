"""What a search reads beside the three tables: names, sounds, and what is known of each row.

Made from the dense table before a generation is published; of a generation without them (an earlier
version made it) they are made when it is opened, and kept in memory.

    row_posts          [rows] posts, -1 where unknown
    row_nsfw           [rows]
    row_categories     [rows] its category's place in `category_names`, a JSON array: NumPy's
                       strings would lose a NUL at the end
    record_json, record_starts     each record as it is answered: the values of `ANSWERED`, as a
                       JSON array; where each begins
    name_*, sound_*, sparse_*      see `names`, `trigrams`, `inverted`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from danbooru_index.embeddings import Array
from danbooru_index.failpoints import reach
from danbooru_index.index.arrays import FOLDER, SavedArrays, Strings, save_array
from danbooru_index.index.catalog import Generation
from danbooru_index.index.inverted import InvertedIndex, inverted_arrays
from danbooru_index.index.names import Named, NameTable, name_entries, sorted_names
from danbooru_index.index.schema import RECORD_COLUMNS
from danbooru_index.index.spread import spread
from danbooru_index.index.trigrams import SoundIndex, trigram_arrays
from danbooru_index.storage.base import Storage

ANSWERED = ("id", *RECORD_COLUMNS)
LAST = "record_starts"  # a generation that has this file of them has all
KEPT = 32
Made = TypeVar("Made")


class SearchFiles:
    """The arrays of a generation, and what reads them."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._kept: dict[Any, Any] = {}

    @property
    def rows(self) -> int:
        return len(self.posts)

    @cached_property
    def posts(self) -> npt.NDArray[np.int64]:
        """The posts of every row, -1 where unknown."""
        return self._arrays["row_posts"]

    @cached_property
    def popularity(self) -> npt.NDArray[np.float32]:
        """log10(posts + 1) of every row, [rows]."""
        known: npt.NDArray[np.float32] = np.log10(np.maximum(self.posts, 0) + 1).astype(np.float32)
        return known

    @cached_property
    def nsfw(self) -> npt.NDArray[np.bool_]:
        return self._arrays["row_nsfw"]

    @cached_property
    def categories(self) -> npt.NDArray[np.uint16]:
        """The category of every row, as its place in `category_names`."""
        return self._arrays["row_categories"]

    @cached_property
    def category_names(self) -> list[str]:
        names: list[str] = json.loads(bytes(self._arrays["category_names"]))
        return names

    @cached_property
    def names(self) -> NameTable:
        return NameTable(self._arrays)

    @cached_property
    def inverted(self) -> InvertedIndex | None:
        """The index of the sparse weights, where it was made with the others."""
        known = "sparse_tokens" in self._arrays
        return InvertedIndex(self._arrays, self.rows) if known else None

    @cached_property
    def sounds(self) -> SoundIndex:
        return SoundIndex(self._arrays)

    def kept(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave when it was last asked for: of a few keys, what costs a pass over all
        rows.
        """
        found: Made | None = self._kept.get(key)
        if found is None:
            found = make()
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = found
        return found

    def records(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """What is known of the tags in the given rows, in that order."""
        return [dict(zip(ANSWERED, json.loads(self._records[row]), strict=True)) for row in rows]

    @cached_property
    def _records(self) -> Strings:
        return Strings(self._arrays["record_json"], self._arrays["record_starts"])


def make_search_arrays(batches: Iterable[pa.RecordBatch], workers: int = 1) -> dict[str, Array]:
    """All arrays, from the records of the dense table (`ANSWERED`), in row order; by so many
    processes.
    """
    names, rows = [], [_KNOWN.empty_table()]
    first = 0  # row of a batch
    for entries, known in spread(f"{__name__}:{read_records_batch.__name__}", batches, workers):
        at = entries.schema.get_field_index("rows")
        moved = pa.chunked_array([entries["rows"].to_numpy() + first])
        names.append(entries.set_column(at, "rows", moved))
        rows.append(known)
        first += len(known)
    arrays = sorted_names(pa.concat_tables([name_entries([]), *names]))
    return arrays | trigram_arrays(arrays) | _row_arrays(pa.concat_tables(rows))


def read_records_batch(batch: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
    """The names of the records of a batch (`name_entries`), and what is known of each row."""
    records = batch.to_pylist()
    known: dict[str, list[Any]] = {name: [] for name in _KNOWN.names}
    for record in records:
        posts = record["post_count"]
        known["posts"].append(-1 if posts is None else posts)
        known["nsfw"].append(bool(record["nsfw"]))
        known["category"].append(record["category"] or "")
        answered = [record[name] for name in ANSWERED]
        known["json"].append(
            json.dumps(answered, ensure_ascii=False, separators=(",", ":")).encode()
        )
    named = (
        Named(
            record["tag"] or "",
            tuple(record["aliases"] or ()),
            record["text"],
            max(record["post_count"] or 0, 0),
            bool(record["deprecated"]),
        )
        for record in records
    )
    return name_entries(named), pa.table(known, _KNOWN)


_KNOWN = pa.schema(
    {"posts": pa.int64(), "nsfw": pa.bool_(), "category": pa.string(), "json": pa.large_binary()}
)


def _row_arrays(known: pa.Table) -> dict[str, Array]:
    categories = known["category"].combine_chunks().dictionary_encode()
    names = json.dumps(categories.dictionary.to_pylist()).encode()
    records = known["json"].to_pylist()
    lengths = np.fromiter(map(len, records), np.int64, len(records))
    return {
        "row_posts": known["posts"].to_numpy(),
        "row_nsfw": known["nsfw"].to_numpy(),
        "row_categories": categories.indices.to_numpy().astype(np.uint32),
        "category_names": np.frombuffer(names, np.uint8),
        "record_json": np.frombuffer(b"".join(records), np.uint8),
        "record_starts": np.concatenate(([0], np.cumsum(lengths))),
    }


def write_search_files(
    generation: Storage,
    records: Iterable[pa.RecordBatch],
    sparse: Iterable[pa.RecordBatch],
    workers: int = 1,
) -> None:
    """Make the arrays of a generation that is about to be sealed, from its dense and its sparse
    table, by so many processes; what was there is replaced.
    """
    folder = generation / FOLDER
    folder.make_folder()
    arrays = inverted_arrays(sparse) | make_search_arrays(records, workers)
    for name in sorted(arrays, key=lambda name: name == LAST):
        save_array(folder, name, arrays[name])
        reach("search.array")


def saved_search_files(generation: Generation) -> SearchFiles | None:
    """The arrays of a generation, mapped; None where it has none of this format (yet)."""
    seal = generation.manifest.seal
    if seal is not None and f"{FOLDER}/{LAST}.npy" in seal.search_files:
        return SearchFiles(SavedArrays(generation.path / FOLDER))
    return None
