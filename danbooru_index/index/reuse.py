"""Vectors of an earlier generation for texts that have not changed.

The driver lists what a generation has (`old_vectors`); an actor finds its texts there and reads
their vectors (`OldVectorReader`). Nothing is believed unseen: a data file is read and compared with
its checksum before the first row is taken from it, the three tables must name the same record, and
its text must be the text asked for. What does not pass is encoded anew, so that rot does not travel
from generation to generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from danbooru_index.embeddings import Embeddings
from danbooru_index.errors import StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index.catalog import Generation
from danbooru_index.index.checks import file_checksum
from danbooru_index.index.lance_io import open_table, panics_as_errors
from danbooru_index.index.old_vectors import OldVectors, text_hashes
from danbooru_index.index.reader import halves, matrices_of
from danbooru_index.index.schema import TABLES, table_path
from danbooru_index.storage.base import Storage

Ints = npt.NDArray[np.int64]
TAKEN = {
    "dense": ["id", "text", "vector"],
    "sparse": ["id", "token_ids", "weights"],
    "colbert": ["id", "vectors"],
}
# what Lance, Arrow and NumPy raise of a damaged file
READING = (OSError, RuntimeError, ValueError, LookupError, pa.ArrowException)
RUN = 32  # rows that are read as one


@dataclass(frozen=True, slots=True)
class Known:
    """Which of N texts have vectors already, `mask` [N]; the `embeddings` of those, and when each
    was encoded, both in the order of the texts; `spoilt`: texts that had some which cannot be
    believed.
    """

    mask: npt.NDArray[np.bool_]
    embeddings: Embeddings | None = None
    encoded_at: Ints | None = None
    spoilt: int = 0


class OldVectorReader:
    """Reads vectors of an earlier generation in an actor. `checked`: a folder that all actors of a
    build share, where each data file is noted that was compared with its checksum.
    """

    def __init__(self, old: OldVectors, checked: Storage) -> None:
        self._old, self._checked = old, checked
        self._believed: dict[str, bool] = {}

    def known(self, texts: Sequence[str]) -> Known:
        """What the generation has of these texts. A file that is damaged or gone raises nothing."""
        rows = self._find(texts)
        asked = rows >= 0
        if not asked.any():
            return Known(asked)
        try:
            reach("reuse.read")
            with panics_as_errors():
                mask = asked & self._believable(rows)
                tables = {
                    name: _take(self._tables[name], columns, rows[mask])
                    for name, columns in TAKEN.items()
                }
                same = _agree(tables, [text for text, ok in zip(texts, mask, strict=True) if ok])
        except (*READING, StorageError):
            # whatever its reader meets in a damaged file: the texts can be encoded
            return Known(np.zeros(len(texts), bool), spoilt=int(asked.sum()))
        tables = {name: table.filter(pa.array(same)) for name, table in tables.items()}
        mask[mask] = same
        return Known(
            mask,
            _embeddings(tables),
            self._old.encoded_at[rows[mask]],
            spoilt=int((asked & ~mask).sum()),
        )

    def _find(self, texts: Sequence[str]) -> Ints:
        """The row of each text, -1 where there is none, [N]."""
        old, hashes = self._old, text_hashes(texts)
        if not len(old.hashes):
            return np.full(len(texts), -1, np.int64)
        places = np.minimum(np.searchsorted(old.hashes, hashes), len(old.hashes) - 1)
        return np.where(old.hashes[places] == hashes, old.rows[places], -1)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        return {name: open_table(self._old.path, name, self._old.versions[name]) for name in TABLES}

    @cached_property
    def _fragments(self) -> dict[str, tuple[Ints, list[list[str]]]]:
        """Of each table: where each fragment ends, in rows, and the data files of each."""
        found = {}
        for name, table in self._tables.items():
            fragments = table.get_fragments()
            ends = np.cumsum([one.metadata.num_rows for one in fragments], dtype=np.int64)
            found[name] = ends, [[file.path for file in one.data_files()] for one in fragments]
        return found

    def _believable(self, rows: Ints) -> npt.NDArray[np.bool_]:
        """Whether the files that hold each row are as they were written, in all tables, [N]."""
        believed = rows >= 0
        for name in TABLES:
            ends, files = self._fragments[name]
            places = np.searchsorted(ends, rows, side="right")
            for place in np.unique(places[believed]).tolist():
                if not all(self._is_whole(name, file) for file in files[place]):
                    believed &= places != place
        return believed

    def _is_whole(self, name: str, file: str) -> bool:
        key = f"{name}.{file}"
        if key not in self._believed:
            noted = self._checked / key
            whole = noted.exists()
            if not whole:
                path = table_path(self._old.path, name) / "data" / file
                try:
                    whole = file_checksum(path) == self._old.checksums[name].get(file)
                except OSError:
                    return False  # it is gone, or cannot be read now
                if whole:
                    noted.create(b"", durable=False)
            self._believed[key] = whole
        return self._believed[key]


def _take(table: Any, columns: list[str], rows: Ints) -> pa.Table:
    """Rows of a Lance table, in the order given. Rows that stand one after the other are read as
    one, whose pages are decoded once; never a row that is not asked for.
    """
    if not len(rows):
        return table.head(0, columns=columns)
    places, back = np.unique(rows, return_inverse=True)
    bounds = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1)  # where runs begin
    lengths = np.diff(bounds, append=len(places))
    long = lengths >= RUN
    parts = [
        table.to_table(columns=columns, offset=int(places[at]), limit=int(length))
        for at, length in zip(bounds[long], lengths[long], strict=True)
    ]
    single = np.repeat(~long, lengths)  # of `places`, those in no long run
    if single.any():
        parts.append(table.take(places[single], columns=columns))
    count = int((~single).sum())
    at = np.empty(len(places), np.int64)  # of each of `places`, in the parts
    at[~single], at[single] = np.arange(count), count + np.arange(len(places) - count)
    wanted, read = at[back], pa.concat_tables(parts)
    in_order = len(wanted) == len(read) and bool((np.diff(wanted) == 1).all())
    return read if in_order else read.take(pa.array(wanted))


def read_rows(generation: Generation, rows: Ints) -> Embeddings:
    """The outputs of rows of a sealed generation, in the order given. Raises `StorageError`."""
    versions = generation.manifest.need_seal().versions
    try:
        with panics_as_errors():
            return _embeddings(
                {
                    name: _take(open_table(generation.path, name, versions[name]), columns, rows)
                    for name, columns in TAKEN.items()
                }
            )
    except READING as error:
        raise StorageError(f"generation {generation.id} cannot be read ({error})") from None


def _agree(tables: dict[str, pa.Table], texts: list[str]) -> npt.NDArray[np.bool_]:
    """Whether each row is of one record in all three tables, and of the text asked for, [N]."""
    dense, ids = tables["dense"], tables["dense"]["id"].to_pylist()
    columns = [tables[name]["id"].to_pylist() for name in ("sparse", "colbert")]
    found = zip(dense["text"].to_pylist(), texts, ids, *columns, strict=True)
    return np.fromiter((has == text and a == b == c for has, text, a, b, c in found), bool)


def _embeddings(tables: dict[str, pa.Table]) -> Embeddings:
    tokens = tables["sparse"]["token_ids"].combine_chunks()
    matrices = matrices_of(tables["colbert"]["vectors"].combine_chunks())
    return Embeddings(
        dense=halves(tables["dense"]["vector"].combine_chunks()),
        sparse_ids=tokens.flatten().to_numpy(),
        sparse_weights=tables["sparse"]["weights"].combine_chunks().flatten().to_numpy(),
        sparse_lengths=np.asarray(tokens.value_lengths(), dtype=np.int64),
        colbert=matrices.vectors,
        colbert_lengths=matrices.lengths,
        non_finite=np.empty(0, np.int64),
    )
