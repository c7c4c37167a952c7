"""Does a new generation answer known queries as well as the last one?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from danbooru_index.choices import Device, Mode
from danbooru_index.config import Filter
from danbooru_index.evaluation.metrics import import_ir_measures, interval, per_query
from danbooru_index.evaluation.queries import Query, read_queries
from danbooru_index.index.catalog import Generation
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.batch import rank_many
from danbooru_index.search.open_generation import as_storage_errors
from danbooru_index.search.query_encoder import QueryEncoder

ANSWERS = 10  # of mAP@10
MEASURE = f"AP@{ANSWERS}"
QUERIES_AT_ONCE = 1024
Precisions = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class QualityChange:
    """mAP@10 of hybrid searches in two generations: `old` and `new`, means over the queries;
    `change`: [mean, low, high] of new - old, with its 95% interval; `kinds`: [old, new, queries] by
    kind of query.
    """

    old: float
    new: float
    change: list[float]
    kinds: dict[str, list[float]] = field(default_factory=dict)


def check_queries(path: str) -> list[Query]:
    """The queries of a file. Raises `InputError` for the file, `UsageError` without ir-measures."""
    import_ir_measures()
    return read_queries(path)


def quality_change(asked: list[Query], before: Precisions, after: Precisions) -> QualityChange:
    """What became of the answers; `before`, `after`: what `average_precisions` gave."""
    kinds = np.array([query.kind for query in asked])
    return QualityChange(
        round(float(before.mean()), 4),
        round(float(after.mean()), 4),
        interval(after - before),
        {
            str(kind): [
                round(float(before[kinds == kind].mean()), 4),
                round(float(after[kinds == kind].mean()), 4),
                int((kinds == kind).sum()),
            ]
            for kind in np.unique(kinds)
        },
    )


def average_precisions(
    generation: Generation, queries: list[Query], model: str | None, device: Device
) -> Precisions:
    """AP@10 of a hybrid search for each query, [queries]. `model`: where the generation's model is,
    None: where it was when the index was built. Raises `ModelError` or `StorageError`.
    """
    encode, reader = QueryEncoder(generation, model, device), GenerationReader(generation)
    run: list[list[str]] = []
    with as_storage_errors():
        tags = reader.tags()
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            encoded = encode([query.text for query in queries[start : start + QUERIES_AT_ONCE]])
            found = rank_many(reader, encoded, Mode.HYBRID, ANSWERS, wanted=Filter(nsfw=True))
            run += [[tags[row] for row in rows.tolist()] for rows in found]
    values: Precisions = per_query(queries, run)[MEASURE]
    return values
