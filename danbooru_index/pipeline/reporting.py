"""The report of a build: the sum of what its shards' completion records say."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from danbooru_index.config import HISTOGRAM_EDGES
from danbooru_index.index.completion import CompletionRecord, count_rejects
from danbooru_index.index.shard_stats import ShardStats
from danbooru_index.pipeline.driver import EncodeOutcome
from danbooru_index.pipeline.finish import Sealed
from danbooru_index.pipeline.plan import BuildPlan
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.pipeline.report_files import save_report
from danbooru_index.pipeline.report_parts import DeviceUse, ShardCounts
from danbooru_index.pipeline.resume import Work

REJECTS_SHOWN = 3  # of each reason
GAP_S = 0.05  # between two shards, that a timeline does not show


def finished_report(plan: BuildPlan, work: Work) -> BuildReport:
    """The report of a build that had nothing to do, but maybe to publish."""
    now = "published: it was complete, nothing was encoded"
    state = now if work.published_now else "already published: nothing to do"
    return _report(plan, work, work.records, EncodeOutcome(), state)


def published_report(
    plan: BuildPlan, work: Work, outcome: EncodeOutcome, sealed: Sealed
) -> BuildReport:
    """The report of a build that published a generation, saved beside its tables."""
    report = _report(plan, work, sealed.records, outcome, "published")
    seconds, times = report.seconds, sealed.times
    seconds.commit, seconds.verify, seconds.compact, seconds.index = (
        times.commit,
        times.verify,
        times.compact,
        times.index,
    )
    report.notes += times.notes
    seconds.total = time.monotonic() - plan.started
    save_report(report, work.generation.path)
    return report


def _report(
    plan: BuildPlan,
    work: Work,
    records: Mapping[str, CompletionRecord],
    outcome: EncodeOutcome,
    state: str,
) -> BuildReport:
    """What this run and the ones before it did for a generation; `records`: of its shards, by id.

    Writes the generation's `rejects.jsonl`, where records were left out.
    """
    manifest = work.generation.manifest
    report = BuildReport(
        index=plan.config.index,
        generation=manifest.id,
        state=state,
        model=plan.checkpoint.name,
        model_id=plan.checkpoint.model_id,
        device=plan.device.name,
        precision=plan.device.precision,
        fingerprint=manifest.fingerprint_digest,
        notes=list(work.notes),
        codec={
            "name": manifest.fingerprint.codec,
            "colbert_dim": manifest.colbert_dim,
            **manifest.codec,
        },
        nsfw_marks=manifest.nsfw_marks,
    )
    count_records(report, records.values())
    total, done, failed = len(plan.scan.shards), len(outcome.done), len(outcome.failed)
    report.shards = ShardCounts(total, total - done - failed, done, failed)
    report.failed_shards = [
        {"shard": shard, "message": message} for shard, message in outcome.failed.items()
    ]
    if report.rejected:
        path = work.generation.path / "rejects.jsonl"
        path.replace(_rejects_file(manifest.shards, records))
        report.rejects_file = str(path)
        report.reject_samples = sampled_rejects(
            reject for record in records.values() for reject in record.rejects
        )
    fresh = [records[shard] for shard in outcome.done if shard in records]
    count_work(report, fresh, plan.device.name, time.monotonic() - plan.started)
    if fresh:
        seconds = report.seconds
        seconds.startup = _start_up_seconds(fresh, plan.started, seconds.total - seconds.encode)
        report.timeline = outcome.timeline
        report.work = _work(fresh, plan.started)
    return report


def _rejects_file(shards: Iterable[str], records: Mapping[str, CompletionRecord]) -> bytes:
    """One JSON line a record that was left out, in the input's order."""
    found = (reject for shard in shards if shard in records for reject in records[shard].rejects)
    return "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in found).encode()


def count_records(report: BuildReport, records: Iterable[CompletionRecord]) -> None:
    """Count completion records, of this run or an earlier one."""
    histogram = [0] * len(HISTOGRAM_EDGES)
    for record in records:
        stats = record.stats
        report.records += record.rows
        report.read += record.read
        report.rejected.update(count_rejects([record]))
        report.tokens += stats.tokens
        report.truncated += stats.truncated
        report.bytes += record.data_bytes
        histogram = (
            [a + b for a, b in zip(histogram, stats.histogram, strict=False)]
            if stats.histogram
            else histogram
        )
    report.histogram = histogram


def count_work(
    report: BuildReport, fresh: Sequence[CompletionRecord], device: str, elapsed: float
) -> None:
    """What this run's shards cost, by stage and device; `elapsed`: seconds so far."""
    stats = [record.stats for record in fresh]
    report.encoded = sum(record.encoded for record in fresh)
    report.reused = sum(one.reused for one in stats)
    if spoilt := sum(one.spoilt for one in stats):
        report.notes.append(
            f"{spoilt:,} records were encoded although an earlier generation has their texts: its"
            " vectors are damaged (danbooru-index verify)"
        )
    report.computed_tokens = sum(one.computed for one in stats)
    report.processed_tokens = sum(one.processed for one in stats)
    for stage in report.stages:
        report.stages[stage] = sum(getattr(one, stage) for one in stats)
    report.seconds.write = report.stages["write"]
    report.seconds.total = elapsed
    if stats:
        report.seconds.encode = encoding_seconds(stats, elapsed)
        report.devices = device_uses(fresh, device, report.seconds.encode)


def sampled_rejects(rejects: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first rejects of each reason."""
    taken: Counter[str] = Counter()
    found = []
    for reject in rejects:
        reason = str(reject.get("reason"))
        taken[reason] += 1
        if taken[reason] <= REJECTS_SHOWN:
            found.append(dict(reject))
    return found


def _work(
    fresh: Sequence[CompletionRecord], started: float
) -> dict[str, list[tuple[float, float]]]:
    """When each actor had shards in hand, in seconds since the command began."""
    offset = time.time() - time.monotonic() + started
    spans: dict[str, list[tuple[float, float]]] = {}
    for record in sorted(fresh, key=lambda one: one.stats.started):
        begin, end = record.stats.started - offset, record.stats.ended - offset
        merged = spans.setdefault(record.stats.worker.id, [])
        if merged and begin <= merged[-1][1] + GAP_S:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((max(0.0, begin), end))
    return spans


def _start_up_seconds(fresh: Sequence[CompletionRecord], started: float, limit: float) -> float:
    """From the command's start to the first token batch, by the workers' clocks."""
    offset = time.time() - time.monotonic()
    first = min(record.stats.started for record in fresh) - offset
    return min(max(0.0, first - started), limit)


def encoding_seconds(stats: Collection[ShardStats], total: float) -> float:
    """From the first token batch of these shards to the last result, by their workers' clocks;
    bounded by the longest shard and by `total`, the seconds of all: a clock may have been set
    meanwhile.
    """
    span = max(one.ended for one in stats) - min(one.started for one in stats)
    longest = max(one.ended - one.started for one in stats)
    return min(total, max(span, longest, 1e-9))


def device_uses(
    fresh: Iterable[CompletionRecord], device: str, limit: float = math.inf
) -> list[DeviceUse]:
    """What each encoding actor did, by name; `limit`: seconds that none can exceed."""
    workers: dict[str, list[CompletionRecord]] = {}
    for record in fresh:
        workers.setdefault(record.stats.worker.id, []).append(record)
    return [
        _device_use(f"{device} [{name}]", done, limit) for name, done in sorted(workers.items())
    ]


def _device_use(name: str, records: list[CompletionRecord], limit: float) -> DeviceUse:
    stats = [record.stats for record in records]
    wall = encoding_seconds(stats, limit)
    busy = sum(one.encode for one in stats)
    tags = sum(record.encoded for record in records)
    return DeviceUse(
        name=name,
        tags=tags,
        busy_share=round(min(1.0, busy / wall), 4) if wall > 0 else 0.0,
        tags_per_second=round(tags / wall, 2) if wall > 0 else 0.0,
        tflops_per_second=(
            round(sum(one.flops for one in stats) / busy / 1e12, 4) if busy > 0 else 0.0
        ),
        peak_memory_bytes=max(one.worker.peak_memory for one in stats),
    )
