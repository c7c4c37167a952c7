"""MaxSim, ColBERT's late interaction: each query vector's best product, averaged.

The one implementation, by numpy: search, the self-check, evaluation and the fitting of projections
all score by it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array, Matrices, to_float32

QUERIES_PER_PRODUCT = 64


def max_sim(queries: Matrices, records: Matrices) -> npt.NDArray[np.float32]:
    """FlagEmbedding's `colbert_score`, [queries, records]; 0 where either has no vectors."""
    scores = np.zeros((len(queries.lengths), len(records.lengths)), dtype=np.float32)
    if not len(records.vectors):
        return scores
    vectors = to_float32(records.vectors)  # [T, C]
    filled = np.flatnonzero(records.lengths)  # records with vectors
    starts = (np.cumsum(records.lengths) - records.lengths)[filled]  # of each in `vectors`
    ends = np.cumsum(queries.lengths)  # of each query in its vectors
    for first in range(0, len(queries.lengths), QUERIES_PER_PRODUCT):
        sizes = queries.lengths[first : first + QUERIES_PER_PRODUCT]  # vectors of each query
        asking = np.flatnonzero(sizes)  # queries with vectors
        if not len(asking):
            continue
        asked = queries.vectors[ends[first] - sizes[0] : ends[first + len(sizes) - 1]].astype(
            np.float32
        )
        # reduceat: the best product with each record's run of vectors, then the sum over each
        # query's run.
        best = np.maximum.reduceat(asked @ vectors.T, starts, axis=1)
        sums = np.add.reduceat(best, (np.cumsum(sizes) - sizes)[asking], axis=0)
        scores[np.ix_(first + asking, filled)] = sums / sizes[asking][:, None]
    return scores


def as_matrices(parts: list[Array]) -> Matrices:
    """Matrices [q, C] of several queries, one after the other."""
    return Matrices(np.concatenate(parts), np.array([len(part) for part in parts], dtype=np.int64))
