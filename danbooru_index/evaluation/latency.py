"""How long a query takes, one at a time, as a person asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from danbooru_index.choices import Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.hybrid import rank
from danbooru_index.search.query_encoder import QueryEncoder
from danbooru_index.search.retriever import EncodedQuery

TIMED = 50  # queries a mode
WARMED = 3  # that are asked before, uncounted
HITS = 10


def mode_latencies(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    modes: Sequence[Mode],
    weights: Weights,
    fusion: Fusion,
    wanted: Filter,
) -> dict[str, list[float]]:
    """For each mode the median and the 95th percentile of ten hits' search, in milliseconds;
    without the encoding of the query.
    """
    return {
        mode.value: _milliseconds(partial(_ask, reader, mode, weights, fusion, wanted), queries)
        for mode in modes
    }


def _ask(
    reader: GenerationReader,
    mode: Mode,
    weights: Weights,
    fusion: Fusion,
    wanted: Filter,
    query: EncodedQuery,
) -> None:
    rank(reader, query, mode, HITS, weights, wanted, fusion)


def encoding_latency(encode: QueryEncoder, queries: Sequence[EncodedQuery]) -> list[float]:
    """The same of encoding a query."""
    return _milliseconds(lambda query: encode([query.text]), queries)


def _milliseconds(
    ask: Callable[[EncodedQuery], object], queries: Sequence[EncodedQuery]
) -> list[float]:
    seconds = []
    some = [*queries[:WARMED], *queries[:: max(1, len(queries) // TIMED)][:TIMED]]
    for query in some:
        started = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - started)
    counted = seconds[WARMED:] or seconds
    return [round(1000 * float(np.percentile(counted, part)), 2) for part in (50, 95)]
