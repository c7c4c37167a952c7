"""The last check before publishing: sampled records must find themselves in every mode.

Called by `pipeline` on the committed tables, before they are sealed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from danbooru_index.choices import Mode
from danbooru_index.embeddings import Embeddings
from danbooru_index.errors import BuildFailedError, first_line
from danbooru_index.index.catalog import Generation
from danbooru_index.index.completion import CompletionRecord
from danbooru_index.index.lance_io import panics_as_errors
from danbooru_index.index.manifest import Checks
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import TABLES
from danbooru_index.ingest.sampling import Sample
from danbooru_index.search.batch import dense_tops
from danbooru_index.search.hybrid import retrievers
from danbooru_index.search.retriever import EncodedQuery, Rows, Scores, query_of

TIE = 2e-3
SELF = 0.99  # a text's score with itself is 1, by unit vectors; halves and bf16 round it
COLBERT_CANDIDATES = 50


def self_queries(
    reader: GenerationReader, samples: list[Sample], embeddings: Embeddings
) -> list[str]:
    """Query with each sample's own text; return what did not find itself, in words.

    An identical text or a tied score passes; a record without sparse weights is exempt in that
    mode, where the stored weights must give the score that the text has with itself (another text
    may hold the same tokens with larger weights). ColBERT is scored exactly over the dense
    candidates and the record itself.
    """
    queries = [query_of(embeddings, place) for place in range(len(samples))]
    # one pass over the table for all
    nearest = dense_tops(reader, queries, COLBERT_CANDIDATES) if queries else []
    problems = []
    for sample, query, (rows, scores) in zip(samples, queries, nearest, strict=True):
        row = reader.row_of(sample.id)
        if row is None:
            problems.append(f"record {sample.id} is in no table")
            continue
        for mode in (Mode.DENSE, Mode.SPARSE, Mode.COLBERT):
            if not _finds_itself(reader, query, row, mode, rows, scores):
                problems.append(f"record {sample.id} does not find itself by {mode.value}")
    return problems


def _finds_itself(
    reader: GenerationReader, query: EncodedQuery, row: int, mode: Mode, rows: Rows, scores: Scores
) -> bool:
    """Whether a record answers its own text; `rows`, `scores`: nearest by dense score."""
    by = retrievers(reader)
    if mode is Mode.SPARSE:
        if not query.sparse:
            return True
        return _reaches(by[mode].score(query, np.array([row]))[0], _own_sparse(query))
    if mode is Mode.DENSE:
        own = by[mode].score(query, np.array([row]))[0]
        return bool(own >= SELF) and (
            bool(own >= scores[0] - TIE) or reader.tied_text(row, int(rows[0]))
        )
    rows = np.unique(np.append(rows, row))
    found = by[mode].score(query, rows)
    own = found[rows == row][0]
    nearest = bool(own >= found.max() - TIE) or reader.tied_text(
        row, int(rows[int(found.argmax())])
    )
    return nearest and bool(own >= SELF or not len(query.colbert))


def _own_sparse(query: EncodedQuery) -> float:
    return float(sum(weight**2 for weight in query.sparse.values()))


def _reaches(score: float, own: float) -> bool:
    """Whether a stored row scores like the text with itself, within the precision."""
    return bool(abs(float(score) - own) <= 0.02 * max(1.0, own))


def check_tables(
    generation: Generation, versions: Mapping[str, int], records: list[CompletionRecord]
) -> Checks:
    """The tables against the records: counts, ids, order. Raises `BuildFailedError`."""
    expected = sum(record.rows for record in records)
    problems = [
        f"shard {record.shard}: {record.read} read, {record.rows} kept, {len(record.rejects)}"
        " left out"
        for record in records
        if record.rows + len(record.rejects) != record.read
    ]
    counts: dict[str, int] = {}
    try:
        with panics_as_errors():
            reader = GenerationReader(generation, versions)
            counts = reader.counts()
            problems += [
                f"{name}: {counts[name]} rows instead of {expected}"
                for name in TABLES
                if counts[name] != expected
            ]
            problems += [] if problems else reader.id_problems()
    except (OSError, RuntimeError, pa.ArrowException) as error:  # a file that went, or is rotten
        problems.append(f"the tables cannot be read back ({first_line(error)})")
    if problems:
        raise BuildFailedError(f"checks failed, nothing was published: {'; '.join(problems[:5])}")
    return Checks(counts, ("counts", "ids"))
