"""Stage 2 in a Ray actor: encode a shard, write its fragments, create its completion record.

Vectors never travel: the encoding actor writes them itself. Nothing here raises into Ray: what went
wrong is in the result. Long because all that one actor does with a shard stands in one place.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from danbooru_index.config import HISTOGRAM_EDGES
from danbooru_index.embeddings import EncoderStats, TokenBatch
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import arm, reach
from danbooru_index.index.completion import (
    CompletionRecord,
    ShardStats,
    TablePart,
    WorkerStats,
    complete,
)
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.protocol import (
    Outcome,
    ShardResult,
    TokenizedShard,
    WorkerSettings,
    describe,
)
from danbooru_index.pipeline.supervision import (
    TooManyAttemptsError,
    Watchdog,
    check_attempts,
    note_loss,
    place,
)
from danbooru_index.pipeline.worker_model import load_encoder
from danbooru_index.records import Reason, Reject

LARGEST_SLICE_ROWS = 16_384
TELL_EVERY_S = 0.5


class EncodeShard:
    """One model on one device: encodes a shard, writes fragments, then the completion record."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._specs = table_specs(settings.dim, settings.colbert_dim)
        self._problem = ""
        self._watchdog = Watchdog(settings.hang_s)
        self._metrics = WorkerMetrics()
        self._told = time.monotonic()
        arm(settings.failpoints)
        try:
            self._encoder = (settings.encoder or load_encoder)(settings)
            self._watchdog.expect(self._encoder.call_s(settings.max_length))
        except DanbooruIndexError as error:
            self._problem = (
                f"{error} ({place(settings)})" if settings.device == "cuda" else str(error)
            )

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self._result(TokenizedShard.from_row(rows)).to_row()

    def _result(self, given: TokenizedShard) -> ShardResult:
        name = given.task.name
        if self._problem:
            return ShardResult(name, Outcome.FATAL, self._problem)
        if given.outcome is not Outcome.DONE:
            return ShardResult(name, given.outcome, given.message)
        try:
            check_attempts(self._settings, name, "encode")
            if given.task.shard is None:
                reach("encode.check", name)
                return ShardResult(name, Outcome.DONE, samples=self._encoder.encode(given.tokens))
            reach("encode.begin", name)
            return ShardResult(name, Outcome.DONE, read=self._encode(given.task.shard, given).read)
        except TooManyAttemptsError as error:
            return ShardResult(name, Outcome.SUSPECT, str(error))
        except Exception as error:
            # whatever a shard does to the device or the disk is that shard's outcome
            if "CUDA error" in str(error):
                note_loss(self._settings, name, "encode", error)
                # the device is lost to this process: its attempts are counted, a new one takes over
                os._exit(71)
            return ShardResult(name, Outcome.FAILED, describe(error))

    def _encode(self, shard: Shard, given: TokenizedShard) -> CompletionRecord:
        """Slices of bounded size through the model into fragments; then the completion record."""
        writer = ShardWriter(self._settings.generation, shard.id, self._specs)
        work = _ShardWork(shard, given, writer)
        with contextlib.ExitStack() as unless_done:
            unless_done.callback(work.writer.discard)  # after a stop too: nothing names these files
            report = self._reporter(shard.id, given.tokens)
            for start, stop in slices(
                given.tokens.lengths, self._settings.colbert_dim, self._settings.slice_bytes
            ):
                self._encode_slice(work, start, stop, report)
            with work.writing():
                parts = work.writer.finish()
            unless_done.pop_all()
        record = work.record(parts, self._settings.fingerprint, self._worker())
        reach("encode.before_record", shard.id)
        if not complete(self._settings.generation, record):
            work.writer.discard()
        reach("encode.after_record", shard.id)
        self._metrics.add(record)
        return record

    def _encode_slice(
        self, work: _ShardWork, start: int, stop: int, report: Callable[[int], None]
    ) -> None:
        """Some rows of a shard through the model into fragments, without those not finite."""
        with self._watchdog:
            reach("encode.forward", work.shard.id)
            embeddings = self._encoder.encode(
                work.given.tokens.rows(start, stop), report, work.encoded
            )
        part = work.given.records.slice(start, stop - start)
        if len(embeddings.non_finite):
            work.rejects += _non_finite(part, embeddings.non_finite.tolist(), work.shard)
            mask = np.ones(part.num_rows, dtype=bool)
            mask[embeddings.non_finite] = False
            part, embeddings = part.filter(pa.array(mask)), embeddings.keep(mask)
        reach("encode.before_write", work.shard.id)
        with work.writing():
            work.writer.write(part, embeddings)
        work.kept += part.num_rows

    def _reporter(self, shard: str, tokens: TokenBatch) -> Callable[[int], None]:
        """Called with the rows of each device call: feeds the watchdog, tells the driver."""
        encoded = 0
        share = len(tokens.lengths)

        def report(rows: int) -> None:
            nonlocal encoded
            self._watchdog.tick()
            encoded += rows
            now = time.monotonic()
            if self._settings.progress is not None and now - self._told > TELL_EVERY_S:
                self._told = now
                self._settings.progress.report.remote(shard, min(encoded, share))

        return report

    def _worker(self) -> WorkerStats:
        return WorkerStats(
            id=f"{os.uname().nodename}:{os.getpid()}",
            tokens_per_batch=self._encoder.tokens_per_batch,
            peak_memory=self._encoder.peak_memory,
        )


@dataclass(slots=True)
class _ShardWork:
    """One shard on its way through an encoder: what has been kept, rejected and spent so far."""

    shard: Shard
    given: TokenizedShard
    writer: ShardWriter
    rejects: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    write_s: float = 0.0
    encoded: EncoderStats = field(default_factory=EncoderStats)
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.rejects += [json.loads(line) for line in self.given.rejects]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """What happens inside counts as writing."""
        at = time.perf_counter()
        yield
        self.write_s += time.perf_counter() - at

    def record(
        self, parts: dict[str, TablePart], fingerprint: str, worker: WorkerStats
    ) -> CompletionRecord:
        """What makes the shard done, once its fragments are durable."""
        return CompletionRecord(
            shard=self.shard.id,
            fingerprint=fingerprint,
            attempt=self.writer.attempt,
            rows=self.kept,
            read=self.shard.rows,
            tables=parts,
            rejects=self.rejects,
            stats=self.stats(worker),
        )

    def stats(self, worker: WorkerStats) -> ShardStats:
        """What the shard cost, now that its fragments are durable."""
        tokens, encoded = self.given.tokens, self.encoded
        return ShardStats(
            started=self.started,
            # whatever the wall clock did meanwhile
            ended=self.started + time.perf_counter() - self.began,
            read=self.given.seconds,
            encode=encoded.seconds,
            write=self.write_s,
            tokens=tokens.tokens,
            truncated=tokens.truncated,
            computed=encoded.computed,
            processed=encoded.processed,
            recomputed=encoded.recomputed,
            flops=encoded.flops,
            histogram=tuple(np.histogram(tokens.lengths, bins=(0, *HISTOGRAM_EDGES))[0].tolist()),
            worker=worker,
        )


def slices(
    lengths: np.ndarray[Any, Any], colbert_dim: int, slice_bytes: int
) -> list[tuple[int, int]]:
    """Row ranges whose ColBERT vectors stay under `slice_bytes` (one long text may exceed it)."""
    limit = max(1, slice_bytes // (2 * colbert_dim))
    bounds, start, size = [], 0, 0
    for row, length in enumerate(lengths.tolist()):
        if row > start and (size + length > limit or row - start == LARGEST_SLICE_ROWS):
            bounds.append((start, row))
            start, size = row, 0
        size += length
    return [*bounds, (start, len(lengths))] if len(lengths) else []


def _non_finite(records: pa.Table, rows: list[int], shard: Shard) -> list[dict[str, Any]]:
    rejects = []
    for row in rows:
        record = records.slice(row, 1).to_pylist()[0]
        reject = Reject(
            Reason.NON_FINITE_OUTPUT, shard.path, 0, f"id {record['id']}", record["text"][:2000]
        )
        rejects.append(json.loads(reject.to_json()))
    return rejects


class WorkerMetrics:
    """Counters `danbooru_index_records`, `_tokens`, and `_seconds` by stage."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._records = Counter(
            "danbooru_index_records", description="Records written to all three tables"
        )
        self._tokens = Counter("danbooru_index_tokens", description="Tokens encoded")
        self._seconds = Counter(
            "danbooru_index_seconds", description="Seconds by stage", tag_keys=("stage",)
        )

    def add(self, record: CompletionRecord) -> None:
        """Count a shard that is done. A counter takes no zero."""
        stats = record.stats
        if record.rows:
            self._records.inc(record.rows)
        if stats.tokens:
            self._tokens.inc(stats.tokens)
        for stage, seconds in (
            ("read", stats.read),
            ("encode", stats.encode),
            ("write", stats.write),
        ):
            if seconds > 0:
                self._seconds.inc(seconds, tags={"stage": stage})
