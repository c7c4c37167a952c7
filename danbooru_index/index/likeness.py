"""How alike two generations are: their texts, and the vectors of texts that both have."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from danbooru_index.embeddings import Embeddings
from danbooru_index.index.catalog import Generation
from danbooru_index.index.old_vectors import old_vectors, text_hashes
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.reuse import read_rows

COMPARED = 256  # unchanged texts whose vectors are compared


def explained_share(generation: Generation) -> float:
    """The share of records whose text says more than the category and the tag, 0 to 1. Raises
    `StorageError`.
    """
    table = GenerationReader(generation).columns(["category", "tag", "text"])
    bracketed = pc.binary_join_element_wise("【", table["category"], "】", table["tag"], "")
    bare = pc.or_(pc.equal(table["text"], bracketed), pc.equal(table["text"], table["tag"]))
    return 1 - float(pc.mean(bare.cast(pa.int8())).as_py() or 0.0)


def compared_vectors(last: Generation, new: Generation) -> tuple[int, float]:
    """How many texts of both generations were compared, and the lowest cosine of any of their three
    outputs to what it was, 1 where there are none. Raises `StorageError`.
    """
    old = old_vectors(last)
    hashes = text_hashes(GenerationReader(new).columns(["text"])["text"].to_pylist())
    rows = np.flatnonzero(np.isin(hashes, old.hashes))
    if len(rows):
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, COMPARED).astype(np.int64))]
    before = read_rows(last, old.rows[np.searchsorted(old.hashes, hashes[rows])])
    after = read_rows(new, rows)
    cosines = [_lowest(before, after, row) for row in range(len(rows))]
    return len(rows), min(cosines, default=1.0)


def _lowest(one: Embeddings, other: Embeddings, row: int) -> float:
    """The lowest cosine of a text's three outputs; 0 where its tokens differ."""
    sparse = [each.sparse_row(row) for each in (one, other)]
    matrices = [each.colbert_row(row) for each in (one, other)]
    if matrices[0].shape != matrices[1].shape:
        return 0.0
    tokens = sorted({*sparse[0], *sparse[1]})
    weights = [np.array([each.get(token, 0.0) for token in tokens]) for each in sparse]
    pairs = [(one.dense[row], other.dense[row]), tuple(weights), tuple(matrices)]
    return min(
        _cosine_of(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in pairs
    )


def _cosine_of(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    found = float(a @ b) / norm if norm else float(not a.any() and not b.any())
    return found if math.isfinite(found) else 0.0
