"""What a shard cost, as its completion record keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """The actor that encoded a shard: host, process, token budget, peak device bytes."""

    id: str = ""
    tokens_per_batch: int = 0
    peak_memory: int = 0


@dataclass(frozen=True, slots=True)
class ShardStats:
    """`started`, `ended`: seconds since the epoch; `read`, `encode`, `write`: seconds of each
    stage; `computed`: tokens of distinct texts, `processed`: tokens on the device, padding
    included; `flops`: useful floating-point operations; `reused`: rows whose vectors are those
    of an earlier generation, `spoilt`: rows that had some there which could not be believed;
    `histogram`: texts by length, by `HISTOGRAM_EDGES`.
    """

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
    reused: int = 0
    spoilt: int = 0
    histogram: tuple[int, ...] = ()
    worker: WorkerStats = WorkerStats()

    def to_json(self) -> dict[str, Any]:
        """All fields, but of those that earlier versions had not only what says something."""
        later = ("reused", "spoilt")
        return {name: value for name, value in asdict(self).items() if value or name not in later}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Parse what `to_json` gave; raise `ValueError` or `TypeError` for other types."""
        worker = WorkerStats(**fields.get("worker", {}))
        histogram = tuple(int(count) for count in fields.get("histogram", ()))
        stats = cls(**fields | {"worker": worker, "histogram": histogram})
        numbers = [fields[name] for name in fields.keys() - {"worker", "histogram"}]
        if not {type(one) for one in (*numbers, worker.peak_memory)} <= {int, float}:
            raise ValueError("its measurements are no numbers")
        return stats
