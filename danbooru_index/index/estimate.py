"""How many bytes an index will need."""

from __future__ import annotations

from danbooru_index.index.arrays import COPIED_WIDTH

DISK_SLACK = 1.1


def index_bytes(records: int, dim: int, colbert_dim: int, tokens: float) -> int:
    """Estimated bytes of the tables of so many records, in half floats, `tokens` per text, and of
    the files beside them: the vectors once more, and names.
    """
    dense, sparse, colbert = 2 * dim, 8 * tokens, 2 * colbert_dim * tokens
    copied = colbert if colbert_dim <= COPIED_WIDTH else 0
    return int(records * (2 * (dense + sparse) + colbert + copied + 600) * DISK_SLACK)
