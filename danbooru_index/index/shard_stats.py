"""What a shard cost, as its completion record says: times, tokens, work, and by whom. A report is the sum of these.

The layout in JSON is part of the INDEX folder: records of earlier versions are read as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """The actor that encoded a shard: host and process, its token budget, the most device memory it held, in bytes."""

    id: str = ""
    tokens_per_batch: int = 0
    peak_memory: int = 0


@dataclass(frozen=True, slots=True)
class ShardStats:
    """`started`, `ended`: seconds since the epoch; `read`, `encode`, `write`: seconds of each stage; `computed`: tokens of
    distinct texts, `processed`: tokens on the device, padding included; `flops`: useful floating-point operations;
    `histogram`: texts by length, by `HISTOGRAM_EDGES`."""

    started: float = 0.0
    ended: float = 0.0
    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    tokens: int = 0
    truncated: int = 0
    computed: int = 0
    processed: int = 0
    recomputed: int = 0
    flops: float = 0.0
    histogram: tuple[int, ...] = ()
    worker: WorkerStats = WorkerStats()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Parse what `to_json` gave; raise `ValueError` or `TypeError` for values of another type."""
        worker = WorkerStats(**fields.get("worker", {}))
        histogram = tuple(int(count) for count in fields.get("histogram", ()))
        stats = cls(**fields | {"worker": worker, "histogram": histogram})
        numbers = [getattr(stats, name) for name in cls.__slots__ if name not in ("worker", "histogram")]
        if not all(isinstance(number, int | float) for number in (*numbers, worker.peak_memory)):
            raise ValueError("its measurements are no numbers")
        return stats
