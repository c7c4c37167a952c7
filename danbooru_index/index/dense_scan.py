"""Dense candidates among all rows of a large generation, whatever a filter lets through.

Each vector is turned by one random rotation, the same for all, and cut into pieces of four values
(of eight where there are 1,024); a piece is kept as the nearest of 16 centroids, four bits. A query
is compared with all codes, in order: no row is out of reach, as it is in an inverted file whose
partition is not probed. The rotation spreads every difference over all pieces: without it twice as
many candidates are needed. faiss's `IndexIVFPQFastScan` with one list does it, since the flat
`IndexPQFastScan` takes no filter.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array, to_float32

CENTROID_BITS = 4
VALUES_PER_CODE, MOST_CODES = 4, 128
FITTED_ROWS = 32_768  # that centroids are fitted to
CODED_AT_ONCE = 65_536
SEED = 1


class DenseScan:
    """Codes of all vectors, in row order."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: Array) -> DenseScan:
        """Code `vectors`, float16 [rows, D]."""
        rows, dim = vectors.shape
        rotation = faiss.RandomRotationMatrix(dim, dim)
        rotation.init(SEED)
        codes = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatIP(dim), dim, 1, _codes(dim), CENTROID_BITS, faiss.METRIC_INNER_PRODUCT
        )
        codes.by_residual = False
        index = faiss.IndexPreTransform(rotation, codes)
        sample = np.unique(np.linspace(0, rows - 1, min(rows, FITTED_ROWS)).astype(np.int64))
        index.train(to_float32(vectors[sample]))
        for start in range(0, rows, CODED_AT_ONCE):
            index.add(to_float32(vectors[start : start + CODED_AT_ONCE]))
        return cls(index)

    def to_array(self) -> npt.NDArray[np.uint8]:
        """faiss's own form, as bytes."""
        saved: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        return saved

    @classmethod
    def from_array(cls, saved: Array) -> DenseScan:
        """Raises `ValueError` for what is not faiss's form."""
        try:
            return cls(faiss.deserialize_index(np.asarray(saved)))
        except RuntimeError as error:
            raise ValueError(f"not an index of faiss: {str(error)[-120:]}") from None

    @property
    def rows(self) -> int:
        return int(self._index.ntotal)

    def nearest(
        self, vector: Array, count: int, bits: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.int64]:
        """About the `count` rows of highest inner product with `vector` [D], in no order; of those
        whose bit is set in `bits`, eight rows a byte from the lowest on.
        """
        faiss.omp_set_num_threads(1)  # of this thread: one list is searched by one anyway
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        wanted = faiss.SearchParametersPreTransform(
            index_params=faiss.IVFSearchParameters(sel=selector, nprobe=1)
        )
        asked = np.ascontiguousarray(vector, np.float32)[None]
        _, found = self._index.search(asked, min(count, self.rows), params=wanted)
        rows: npt.NDArray[np.int64] = found[0][found[0] >= 0]
        return rows


def _codes(dim: int) -> int:
    """How many codes a vector gets: a divisor of its width."""
    most = min(MOST_CODES, max(1, dim // VALUES_PER_CODE))
    return max(codes for codes in range(1, most + 1) if dim % codes == 0)
