"""Rows of a table as they are taken to be used again, and when they were encoded."""

from itertools import pairwise

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danbooru_index.embeddings import Embeddings, merge
from danbooru_index.index.completion import CompletionRecord
from danbooru_index.index.origins import encoding_times, to_origins
from danbooru_index.index.reuse import _take
from danbooru_index.index.schema import TABLES
from danbooru_index.index.shard_stats import ShardStats

ROWS = 500


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """500 rows in 4 fragments; row n holds n matrices of 2 values, modulo 5."""
    values = [[[float(n), float(m)] for m in range(n % 5)] for n in range(ROWS)]
    kind = pa.list_(pa.list_(pa.float16(), 2))
    whole = pa.table({"id": [str(n) for n in range(ROWS)], "vectors": pa.array(values, kind)})
    path = str(tmp_path_factory.mktemp("rows") / "t.lance")
    return lance.write_dataset(whole, path, max_rows_per_file=130), whole


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [7],
        list(range(ROWS)),
        list(range(100, 180)),
        list(range(180, 100, -1)),
        [*range(5, 60), *range(61, 140), 200, 202, 204, *range(300, 499)],
        [3, 3, 3, 499, 0, 3],
    ],
)
def test_any_rows_come_in_the_order_asked_for(table, rows):
    dataset, whole = table
    found = _take(dataset, ["id", "vectors"], np.array(rows, np.int64))
    assert found.to_pylist() == [whole.slice(row, 1).to_pylist()[0] for row in rows]


@given(st.lists(st.integers(0, ROWS - 1), max_size=200))
def test_any_rows_at_all(table, rows):
    dataset, _ = table
    found = _take(dataset, ["id"], np.array(rows, np.int64))
    assert found["id"].to_pylist() == [str(row) for row in rows]


@given(st.lists(st.integers(1, 4), max_size=60))
def test_times_come_back(times):
    origins = to_origins(np.array(times, np.int64))
    record = CompletionRecord(
        "s", "f", "a", len(times), len(times), dict.fromkeys(TABLES),
        stats=ShardStats(started=9.7), origins=origins,
    )  # fmt: skip
    assert encoding_times(record).tolist() == times
    assert all(one[0] != next_[0] for one, next_ in pairwise(origins))


def made(lengths):
    """Embeddings of texts whose matrices and weights have these lengths, each value its own."""
    total = sum(lengths)
    counts = np.array(lengths, np.int64)
    return Embeddings(
        dense=np.random.rand(len(lengths), 3).astype(np.float16),
        sparse_ids=np.arange(total, dtype=np.int32),
        sparse_weights=np.random.rand(total).astype(np.float32),
        sparse_lengths=counts,
        colbert=np.random.rand(total, 2).astype(np.float16),
        colbert_lengths=counts,
        non_finite=np.empty(0, np.int64),
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=20))
def test_what_is_known_and_what_is_encoded_make_the_whole(rows):
    mask = np.array([known for known, _ in rows], bool)
    whole = made([length for _, length in rows])
    merged = merge(mask, whole.keep(mask), whole.keep(~mask))
    for name in Embeddings.__slots__:
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
