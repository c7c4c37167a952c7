"""The likeness of what two generations hold of one text."""

from dataclasses import replace

import numpy as np
import pytest

from danbooru_index.embeddings import Embeddings
from danbooru_index.index.likeness import _lowest


@pytest.fixture
def one():
    """The outputs of one text of three tokens."""
    return Embeddings(
        dense=np.array([[0.6, 0.8]], np.float16),
        sparse_ids=np.array([3, 9], np.int32),
        sparse_weights=np.array([0.5, 0.25], np.float32),
        sparse_lengths=np.array([2], np.int64),
        colbert=np.array([[1, 0], [0, 1]], np.float16),
        colbert_lengths=np.array([2], np.int64),
        non_finite=np.empty(0, np.int64),
    )


def test_the_same_is_1_and_the_least_alike_output_counts(one):
    assert _lowest(one, one, 0) == pytest.approx(1)
    other = replace(one, sparse_ids=np.array([3, 8], np.int32))
    assert _lowest(one, other, 0) == pytest.approx(0.25 / (0.25 + 0.0625))
    turned = replace(one, dense=np.array([[0.8, -0.6]], np.float16))
    assert _lowest(one, turned, 0) == pytest.approx(0, abs=1e-3)


def test_what_is_no_number_or_of_other_tokens_is_not_alike(one):
    assert _lowest(one, replace(one, dense=np.array([[np.nan, 0.8]], np.float16)), 0) == 0
    longer = replace(
        one, colbert=np.eye(3, 2, dtype=np.float16), colbert_lengths=np.array([3], np.int64)
    )
    assert _lowest(one, longer, 0) == 0
    empty = replace(
        one,
        sparse_ids=np.empty(0, np.int32),
        sparse_weights=np.empty(0, np.float32),
        sparse_lengths=np.array([0], np.int64),
    )
    assert _lowest(one, empty, 0) == 0
    assert _lowest(empty, empty, 0) == pytest.approx(1)
