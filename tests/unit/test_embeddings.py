"""Flat buffers of ragged rows."""

import numpy as np

from danbooru_index.embeddings import TokenBatch, ragged_take


def test_ragged_rows():
    assert ragged_take(np.array([2, 0, 3]), np.array([2, 0, 1, 2])).tolist() == [
        2,
        3,
        4,
        0,
        1,
        2,
        3,
        4,
    ]
    batch = TokenBatch(np.arange(6, dtype=np.int32), np.array([1, 2, 3], np.int32), (0,))
    assert batch.rows(1, 3).token_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.rows(1, 3).special == (0,)
