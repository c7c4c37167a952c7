"""How many bytes an index will need."""

from __future__ import annotations

DISK_SLACK = 1.1


def index_bytes(records: int, dim: int, colbert_dim: int, tokens: float) -> int:
    """Estimated bytes of the tables of so many records, in half floats, `tokens` per text."""
    return int(records * (2 * dim + 2 * colbert_dim * tokens + 8 * tokens + 200) * DISK_SLACK)
