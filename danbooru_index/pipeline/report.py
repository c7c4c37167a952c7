"""What a run measured, against the published baseline: as text, JSON and a picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from danbooru_index.config import (
    BASELINE_HARDWARE,
    BASELINE_RECORDS,
    BASELINE_TAGS_PER_SECOND,
    BASELINE_VRAM_GB,
)
from danbooru_index.index.codec import Fidelity
from danbooru_index.pipeline.report_parts import DeviceUse, Seconds, ShardCounts
from danbooru_index.records import describe_rejects


@dataclass(slots=True)
class BuildReport:
    """What `build` did. The fields of `to_dict` are a contract; see DESIGN section 11. `work`: when
    each actor had shards in hand, in seconds since the command began; `changes`: since the
    generation published before, see `rebuild`.

    Its length is that of the contract: each field is declared, put into JSON, and told in words.
    """

    index: str
    generation: str
    state: str
    model: str
    model_id: str
    device: str
    precision: str
    fingerprint: str
    records: int = 0
    read: int = 0
    encoded: int = 0
    reused: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    rejects_file: str | None = None
    shards: ShardCounts = field(default_factory=ShardCounts)
    failed_shards: list[dict[str, str]] = field(default_factory=list)
    tokens: int = 0
    computed_tokens: int = 0
    processed_tokens: int = 0
    truncated: int = 0
    bytes: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    stages: dict[str, float] = field(
        default_factory=lambda: {"read": 0.0, "encode": 0.0, "write": 0.0}
    )
    devices: list[DeviceUse] = field(default_factory=list)
    histogram: list[int] = field(default_factory=list)
    timeline: list[tuple[float, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    picture: str | None = None
    page: str | None = None
    work: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    reject_samples: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    nsfw_marks: str = ""
    guards: list[dict[str, Any]] = field(default_factory=list)

    @property
    def padding_waste(self) -> float:
        """The share of processed tokens that were padding."""
        return 1 - self.computed_tokens / self.processed_tokens if self.processed_tokens else 0.0

    @property
    def encode_rate(self) -> float:
        """Tags a second while encoding (this run's shards)."""
        return self.encoded / self.seconds.encode if self.seconds.encode > 0 else 0.0

    @property
    def end_to_end_rate(self) -> float:
        """Tags a second from the command's start to the published index (this run's shards)."""
        return self.encoded / self.seconds.total if self.seconds.total > 0 else 0.0

    @property
    def differs_from_baseline(self) -> str:
        """What a reader of the ratio must know."""
        return (
            f"the baseline ran BAAI/bge-m3 in fp16 on {BASELINE_HARDWARE} ({BASELINE_VRAM_GB} GB of"
            f" VRAM); this run: {self.model} in {self.precision} on {self.device}, dense, sparse"
            f" and ColBERT outputs of {self.records:,} records: the ratio compares jobs, not"
            " machines or models"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `build --json`."""
        rate = self.encode_rate
        return {
            "index": self.index,
            "generation": self.generation,
            "state": self.state,
            "model": {"name": self.model, "id": self.model_id},
            "device": self.device,
            "precision": self.precision,
            "records": self.records,
            "read": self.read,
            "encoded": self.encoded,
            "reused": self.reused,
            "rejected": dict(self.rejected),
            "rejects_file": self.rejects_file,
            "shards": _fields(self.shards),
            "failed_shards": self.failed_shards,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "padding_waste": round(self.padding_waste, 4),
            "bytes": self.bytes,
            "seconds": {name: round(value, 3) for name, value in _fields(self.seconds).items()},
            "stages": {name: round(value, 3) for name, value in self.stages.items()},
            "tags_per_second": {
                "encode": round(rate, 2),
                "end_to_end": round(self.end_to_end_rate, 2),
            },
            "baseline": {
                "tags_per_second": BASELINE_TAGS_PER_SECOND,
                "ratio": round(rate / BASELINE_TAGS_PER_SECOND, 3),
                "hours_for_1386373": round(BASELINE_RECORDS / rate / 3600, 3) if rate else None,
                "differs": self.differs_from_baseline,
            },
            "devices": [_fields(device) for device in self.devices],
            "fingerprint": self.fingerprint,
            "codec": self.codec,
            "nsfw_marks": self.nsfw_marks,
            "guards": self.guards,
            "notes": self.notes,
            "picture": self.picture,
            "page": self.page,
            "changes": self.changes,
        }

    def to_text(self) -> str:
        """The report for a person."""
        lines = [f"index {self.index}: generation {self.generation} {self.state}"]
        lines += [f"  note      {note}" for note in self.notes]
        lines.append(
            f"  model     {self.model} (id {self.model_id[:12]}), {self.precision} on {self.device}"
        )
        rejected = f"; left out: {describe_rejects(self.rejected)}" if self.rejected else ""
        lines.append(f"  records   {self.records:,} in each of the three tables{rejected}")
        if self.nsfw_marks:
            lines.append(f"  nsfw      marked by {self.nsfw_marks}")
        if self.rejects_file:
            lines.append(f"            each one left out is in {self.rejects_file}")
        if "overlap" in self.codec:
            lines.append(
                "  codec    "
                f" {Fidelity(**{n: self.codec[n] for n in Fidelity.__slots__}).to_text()}"
            )
        lines += [f"  guard     {one['name']}: {one['message']}" for one in self.guards]
        counts = self.shards
        lines.append(
            f"  shards    {counts.total}: {counts.done} done now, {counts.skipped} before,"
            f" {counts.failed} failed"
        )
        lines += [
            f"            failed: {failed['shard']} {failed['message']}"
            for failed in self.failed_shards
        ]
        lines.append(
            f"  tokens    {self.tokens:,}, {self.truncated:,} texts truncated; padding"
            f" {self.padding_waste:.1%}; tables {self.bytes / 1e6:,.1f} MB"
        )
        if self.encoded or self.reused:
            lines += self._time_lines()
        if self.page:
            lines.append(f"  page      {self.page}")
        return "\n".join(lines)

    def _time_lines(self) -> list[str]:
        seconds = self.seconds
        compaction = f"compaction {seconds.compact:.1f}, " if seconds.compact >= 0.05 else ""
        lines = [
            f"  seconds   {seconds.total:.1f} in all: start-up {seconds.startup:.1f}, encoding"
            f" {seconds.encode:.1f} (writing {seconds.write:.1f} behind it), commit"
            f" {seconds.commit:.1f}, {compaction}index {seconds.index:.1f}, checks"
            f" {seconds.verify:.1f}"
        ]
        if self.reused:
            lines.insert(
                0,
                f"  reused    the vectors of {self.reused:,} records; {self.encoded:,} records"
                " encoded, which alone count as speed",
            )
        return lines + (self._speed_lines() if self.encoded else [])

    def _speed_lines(self) -> list[str]:
        rate = self.encode_rate
        lines = [
            (
                f"  speed     {rate:,.1f} tags/s while encoding, {self.end_to_end_rate:,.1f} from"
                " start to published"
            ),
            (
                f"  baseline  {rate / BASELINE_TAGS_PER_SECOND:.2f} x the published"
                f" {BASELINE_TAGS_PER_SECOND} tags/s; 1,386,373 tags would take"
                f" {BASELINE_RECORDS / rate / 3600:.2f} hours"
            ),
            f"            {self.differs_from_baseline}",
        ]
        for device in self.devices:
            memory = (
                f", peak {device.peak_memory_bytes / 1e9:.2f} GB"
                if device.peak_memory_bytes
                else ""
            )
            lines.append(
                f"  device    {device.name}: busy {device.busy_share:.0%},"
                f" {device.tags_per_second:,.1f} tags/s, {device.tflops_per_second:.3f}"
                f" TFLOP/s{memory}"
            )
        return lines


def _fields(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__}
