"""Measuring the job against what a user would pick instead: ratios, in one run.

Each part runs its contestants in turn, several times over, on the same machine, texts and model;
medians with their spread are reported, never one time alone. The last line on stdout is one JSON
document.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from danbooru_index.choices import Choice, Device, DeviceInfo, Precision
from danbooru_index.config import SAMPLE_TAGS
from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.sources import valid_records
from danbooru_index.model.checkpoint import Checkpoint, resolve_model
from danbooru_index.model.device import give_back_memory, probe_device
from danbooru_index.records import Record

ROWS = {"cpu": 2048, "cuda": 65_536}  # a GPU takes 2,048 tags in one call
VERSIONS = ("torch", "transformers", "FlagEmbedding", "ray", "pylance", "pyarrow")


class Part(Choice):
    """What can be measured, each by the function of its name in one of this room's modules."""

    ENCODER = "encoder"
    PACKING = "packing"
    COLBERT = "colbert"
    JOB = "job"
    OVERHEAD = "overhead"
    DEVICE = "device"
    OVERLAP = "overlap"
    SCALING = "scaling"
    SHARDS = "shards"

    @property
    def measure(self) -> Callable[[Bench], dict[str, Any]]:
        if self in (Part.ENCODER, Part.PACKING, Part.COLBERT):
            module = self.value
        else:
            module = "job" if self in (Part.JOB, Part.OVERHEAD) else "orchestration"
        function: Callable[[Bench], dict[str, Any]] = getattr(
            import_module(f"danbooru_index.benchmark.{module}"), self.value
        )
        return function


IN_ROUNDS = (Part.ENCODER, Part.PACKING, Part.JOB, Part.OVERHEAD)


@dataclass(frozen=True, slots=True)
class BenchmarkConfig:
    """What to measure, with which model and texts; `rows`: of the input (default: `ROWS` of the
    device), `repeats`: rounds of each contestant.
    """

    model: str
    parts: tuple[Part, ...] = (Part.ENCODER,)
    inputs: tuple[str, ...] = (str(SAMPLE_TAGS),)
    rows: int | None = None
    repeats: int = 3
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    against: bool = True

    def __post_init__(self) -> None:
        if (self.rows is not None and self.rows < 1) or self.repeats < 1:
            raise UsageError("--rows and --repeats must be at least 1")


@dataclass(slots=True)
class Bench:
    """What the parts share."""

    config: BenchmarkConfig
    checkpoint: Checkpoint
    device: DeviceInfo
    records: list[Record]
    scratch: Path

    @property
    def texts(self) -> list[str]:
        return [record.text for record in self.records]

    @property
    def rows(self) -> int:
        """How many records, or shards, to measure with."""
        return self.config.rows or ROWS[self.device.kind]

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The one asked for; else on a CPU fp32 and, where it has it, bf16, and on a GPU fp16."""
        if self.config.precision is not Precision.AUTO:
            return (Precision(self.device.precision),)
        if self.device.kind == "cuda":
            return (Precision.FP16,)
        return (
            (Precision.FP32, Precision.BF16)
            if self.device.precision == "bf16"
            else (Precision.FP32,)
        )


@dataclass(slots=True)
class BenchmarkReport:
    """What was measured, by part, on which machine."""

    device: str
    model: str
    rows: int
    repeats: int
    versions: dict[str, str]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def to_text(self) -> str:
        lines = [f"{self.model} on {self.device}: {self.rows:,} records"]
        for part, measured in self.parts.items():
            rounds = (
                f"{self.repeats} rounds of each" if Part(part) in IN_ROUNDS else "one run of each"
            )
            lines += [f"{part}, {rounds}", *(f"  {line}" for line in _measurement_lines(measured))]
        return "\n".join(lines)


def benchmark(config: BenchmarkConfig) -> BenchmarkReport:
    """Measure the parts asked for, one after the other.

    Raises `UsageError`, `InputError`, `ModelError` or `DeviceError` before any of it.
    """
    checkpoint, device = resolve_model(config.model), probe_device(config.device, config.precision)
    records = list(islice(_records(config.inputs), config.rows or ROWS[device.kind]))
    if not records:
        raise InputError(f"{', '.join(config.inputs)}: no record to measure with")
    versions = {name: version(name) for name in VERSIONS}
    report = BenchmarkReport(device.name, checkpoint.name, len(records), config.repeats, versions)
    for part in config.parts:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
            report.parts[part.value] = part.measure(
                Bench(config, checkpoint, device, records, Path(scratch))
            )
        give_back_memory()
    return report


def _records(inputs: tuple[str, ...]) -> Any:
    """The valid records of dumps, each id once."""
    seen: set[str] = set()
    for record in valid_records(inputs):
        if record.id not in seen:
            seen.add(record.id)
            yield record


def in_turn(
    contestants: dict[str, Callable[[], Any]],
    repeats: int,
    after: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; each round runs all of them, the last one first
    next time.

    `after` is called with a contestant's name when its time is taken.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeats):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            started = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - started)
            after(name)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster, round by round: the median and the spread."""
    rounds = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "median": round(statistics.median(rounds), 3),
        "least": round(min(rounds), 3),
        "most": round(max(rounds), 3),
    }


def summary(seconds: list[float], count: int, unit: str = "texts_per_second") -> dict[str, float]:
    """The median time of a contestant, its spread, and what that makes a second."""
    middle = statistics.median(seconds)
    return {
        "seconds": round(middle, 3),
        "fastest": round(min(seconds), 3),
        "slowest": round(max(seconds), 3),
        unit: round(count / middle, 1),
    }


def _measurement_lines(measured: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested measurements as `name value` lines; a small flat one on a line of its own."""
    lines = []
    for name, value in measured.items():
        label = f"{prefix}{name}"
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            lines += [label, *_measurement_lines(value, "  ")]
        elif isinstance(value, dict):
            lines.append(
                f"{label:<34} " + ", ".join(f"{key} {inner}" for key, inner in value.items())
            )
        else:
            lines.append(f"{label:<34} {value}")
    return lines


def write_dump(path: Path, records: Iterable[tuple[str, str]]) -> Path:
    """JSON lines of (id, text)."""
    with path.open("w", encoding="utf-8") as lines:
        for record_id, text in records:
            lines.write(json.dumps({"id": record_id, "text": text}, ensure_ascii=False) + "\n")
    return path
