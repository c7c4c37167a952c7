"""The inverted index of the sparse weights gives what the plain dot product gives."""

import numpy as np
import pyarrow as pa
import pytest

from danbooru_index.index import inverted
from danbooru_index.index.inverted import InvertedIndex, inverted_arrays

ROWS, TOKENS = 4000, 300


def random_rows(chance, rows=ROWS):
    """Token ids by row; tokens 0 and 1 in nearly every row, as brackets are; weights in steps, so
    that many rows tie.
    """
    for _ in range(rows):
        rare = chance.choice(np.arange(2, TOKENS), chance.integers(0, 9), replace=False)
        common = [token for token in (0, 1) if chance.random() < 0.95]
        tokens = np.sort(np.concatenate([rare, common])).astype(int)
        yield tokens.tolist(), (chance.integers(1, 20, len(tokens)) / 20).tolist()


def as_batches(rows):
    rows = list(rows)
    table = pa.table(
        {
            "token_ids": pa.array([tokens for tokens, _ in rows], pa.list_(pa.int32())),
            "weights": pa.array([weights for _, weights in rows], pa.list_(pa.float32())),
        }
    )
    return table.to_batches(max_chunksize=700)


@pytest.fixture(scope="module")
def made():
    rows = list(random_rows(np.random.default_rng(0)))
    matrix = np.zeros((ROWS, TOKENS), np.float32)
    for number, (tokens, weights) in enumerate(rows):
        matrix[number, tokens] = weights
    return InvertedIndex(inverted_arrays(as_batches(rows)), ROWS), matrix


QUERIES = [
    {5: 0.5, 77: 1.0, 0: 0.1, 1: 0.1},
    {0: 1.0, 1: 0.3},  # common tokens alone
    {0: 2.0, 9: 0.01},  # a common one that decides
    {5: 0.25},
    {5: 0.5, 6: 0.5, 7: 0.5, 8: 0.5, 9: 0.5, 10: 0.5, 0: 0.4},
    {999: 1.0, 5: 0.5},
    {999: 1.0},
    {},
]


@pytest.mark.parametrize("judged_from", [0, 200, 10**9])
@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.01, 0.0])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_the_best_rows_are_those_of_the_dot_product(
    made, monkeypatch, judged_from, query, share, k
):
    monkeypatch.setattr(inverted, "JUDGED_FROM", judged_from)
    index, matrix = made
    vector = np.zeros(TOKENS, np.float32)
    for token, weight in query.items():
        if token < TOKENS:
            vector[token] = weight
    by_hand = matrix @ vector
    mask = np.random.default_rng(1).random(ROWS) < share
    allowed = np.flatnonzero(mask & (by_hand > 0))
    expected = allowed[np.lexsort((allowed, -np.round(by_hand[allowed], 4)))][:k]
    rows, scores = index.top(query, k, mask)
    assert len(set(rows.tolist())) == len(rows) == len(expected)
    assert scores == pytest.approx(by_hand[expected], abs=1e-5)
    assert scores == pytest.approx(by_hand[rows], abs=1e-5)
    assert mask[rows].all()
    assert (np.diff(scores) <= 0).all()
    every = np.arange(ROWS)[::7]
    assert index.score(query, every) == pytest.approx(by_hand[every], abs=1e-5)


def test_ties_are_in_row_order():
    index = InvertedIndex(inverted_arrays(as_batches([([3], [0.5])] * 50)), 50)
    assert index.top({3: 1.0}, 5, np.ones(50, bool))[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rows", [[], [([], [])] * 3])
def test_an_index_of_nothing(rows):
    index = InvertedIndex(inverted_arrays(as_batches(rows)), len(rows))
    assert not len(index.top({3: 1.0}, 5, np.ones(len(rows), bool))[0])
    assert index.score({3: 1.0}, np.arange(len(rows))).tolist() == [0.0] * len(rows)
