"""Stage 2 in a Ray actor: encode a shard, write its fragments, create its completion record.

Vectors never travel: the encoding actor writes them itself. Nothing here raises into Ray: what went
wrong is in the result.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import pyarrow as pa

from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import arm, reach
from danbooru_index.index.completion import CompletionRecord, complete, read_record
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.helper import Helper
from danbooru_index.pipeline.metrics import WorkerMetrics
from danbooru_index.pipeline.protocol import (
    Outcome,
    ShardResult,
    TokenizedShard,
    WorkerSettings,
    describe,
)
from danbooru_index.pipeline.shard_work import ShardWork, old_vectors_of, slices, worker_stats
from danbooru_index.pipeline.supervision import (
    TooManyAttemptsError,
    Watchdog,
    check_attempts,
    node_id,
    note_loss,
    place,
)
from danbooru_index.pipeline.worker_model import load_encoder, refuse_blindness

REPORT_EVERY_S = 0.5


class SupersededError(Exception):
    """Another attempt at the shard has completed it."""


class EncodeShard:
    """One model on one device: encodes a shard, writes fragments, then the completion record.

    Its length is that of what one attempt may meet.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._specs = table_specs(settings.dim, settings.colbert_dim)
        self._problem = ""
        self._watchdog = Watchdog(settings.hang_s)
        self._metrics = WorkerMetrics()
        self._told = time.monotonic()
        self._id = f"{node_id()}:{os.getpid()}"
        self._in_hand, self._counting = 0, threading.Lock()
        arm(settings.failpoints)
        try:
            refuse_blindness(settings)
            self._encoder = (settings.encoder or load_encoder)(settings)
            self._watchdog.expect(self._encoder.call_s(settings.max_length))
            self._old = old_vectors_of(settings)
        except DanbooruIndexError as error:
            self._problem = (
                f"{error} ({place(settings)})" if settings.device == "cuda" else str(error)
            )
        if settings.backups and not self._problem:
            Helper(settings, self, self._id).start()

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self._result(TokenizedShard.from_row(rows)).to_row()

    def _result(self, given: TokenizedShard) -> ShardResult:
        name = given.task.name
        if self._problem:
            return ShardResult(name, Outcome.FATAL, self._problem)
        self._take(1)
        try:
            return self.attempt(given, "encode")
        finally:
            self._take(-1)

    def _take(self, shards: int) -> None:
        """So many more are in hand."""
        with self._counting:
            self._in_hand += shards
            self._metrics.in_hand(self._in_hand)

    @property
    def idle(self) -> bool:
        """Whether no shard is in hand."""
        return not self._in_hand

    def attempt(self, given: TokenizedShard, stage: str) -> ShardResult:
        """One attempt at what a tokeniser gave, and what became of it; counted by `stage`."""
        name = given.task.name
        if given.outcome is not Outcome.DONE:
            return ShardResult(name, given.outcome, given.message)
        try:
            if (read := self._completed(name)) is not None:
                return ShardResult(name, Outcome.DONE, read=read)
            check_attempts(self._settings, name, stage)
            if stage == "backup":
                self._metrics.shard("again")
            if given.task.shard is None:
                reach("encode.check", name)
                return ShardResult(name, Outcome.DONE, samples=self._encoder.encode(given.tokens))
            reach("encode.begin", name)
            return ShardResult(name, Outcome.DONE, read=self._encode(given.task.shard, given).read)
        except SupersededError:
            return ShardResult(name, Outcome.DONE, read=self._completed(name) or 0)
        except TooManyAttemptsError as error:
            return ShardResult(name, Outcome.SUSPECT, str(error))
        except Exception as error:
            # whatever a shard does to the device or the disk is that shard's outcome
            if "CUDA error" in str(error):
                note_loss(self._settings, name, stage, error)
                # the device is lost to this process: its attempts are counted, a new one takes over
                os._exit(71)
            self._metrics.shard("failed")
            return ShardResult(name, Outcome.FAILED, describe(error))

    def _completed(self, name: str) -> int | None:
        """The records read of a shard that another attempt has completed; else None."""
        record, _ = read_record(self._settings.generation, name)
        mine = record is not None and record.fingerprint == self._settings.fingerprint
        return record.read if record is not None and mine else None

    def _tell(self, method: str, *arguments: object) -> None:
        """Tell the progress actor, where there is one, and do not wait for it."""
        if self._settings.progress is not None:
            getattr(self._settings.progress, method).remote(*arguments)

    def _encode(self, shard: Shard, given: TokenizedShard) -> CompletionRecord:
        """Slices of bounded size through the model into fragments; then the completion record.

        Raises `SupersededError` where another attempt was first.
        """
        self._tell("begin", shard.id, self._id)
        writer = ShardWriter(self._settings.generation, shard.id, self._specs)
        work = ShardWork(shard, given, writer, self._old)
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
        record = work.record(parts, self._settings.fingerprint, worker_stats(self._encoder))
        reach("encode.before_record", shard.id)
        if not complete(self._settings.generation, record):
            work.writer.discard()
        reach("encode.after_record", shard.id)
        self._tell("end", shard.id, self._id, record.read, os.uname().nodename)
        self._metrics.add(record)
        return record

    def _encode_slice(
        self, work: ShardWork, start: int, stop: int, report: Callable[[int], None]
    ) -> None:
        """Some rows of a shard through the model into fragments, without those not finite."""
        known = work.known(start, stop)
        with self._watchdog:
            reach("encode.forward", work.shard.id)
            embeddings = work.embed(self._encoder.encode, (start, stop), known, report)
        part, embeddings = work.finite(start, known, embeddings)
        reach("encode.before_write", work.shard.id)
        self._stop_if_completed(work.shard.id)
        with work.writing():
            work.writer.write(part, embeddings)

    def _reporter(self, shard: str, tokens: TokenBatch) -> Callable[[int], None]:
        """Called with the rows of each device call: feeds the watchdog, tells the driver."""
        encoded = 0
        share = len(tokens.lengths)

        def report(rows: int) -> None:
            nonlocal encoded
            self._watchdog.tick()
            encoded += rows
            now = time.monotonic()
            if now - self._told > REPORT_EVERY_S:
                self._told = now
                self._tell("report", shard, min(encoded, share))

        return report

    def _stop_if_completed(self, shard: str) -> None:
        """Between device calls only: an error inside one would be the model's."""
        if self._completed(shard) is not None:
            raise SupersededError
