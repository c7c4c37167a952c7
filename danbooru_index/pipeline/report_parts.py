"""What a report counts: shards, seconds, devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ShardCounts:
    """A build's shards: in all, skipped as done before, done by this run, failed for good."""

    total: int = 0
    skipped: int = 0
    done: int = 0
    failed: int = 0


@dataclass(slots=True)
class Seconds:
    """Wall seconds. `encode`: from the first token batch to the last receipt, reading and writing
    behind it included; `write`: summed over the actors, mostly behind the next forward pass.
    """

    total: float = 0.0
    startup: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    commit: float = 0.0
    compact: float = 0.0
    index: float = 0.0
    verify: float = 0.0


@dataclass(slots=True)
class DeviceUse:
    """One encoding actor: share of time in the forward pass, tags/s, TFLOP/s, peak bytes."""

    name: str
    tags: int = 0
    busy_share: float = 0.0
    tags_per_second: float = 0.0
    tflops_per_second: float = 0.0
    peak_memory_bytes: int = 0
