"""Stage 2 in a Ray actor: encode a shard, write its fragments, create its completion record.

Vectors never travel: the encoding actor writes them itself. Nothing here raises into Ray: what went wrong is in the result.
"""

from __future__ import annotations

import io
import json
import os
import time
from typing import Any

import numpy as np
import pyarrow as pa

from danbooru_index.config import HISTOGRAM_EDGES, Device, Precision
from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import arm, reach
from danbooru_index.index.codec import load_codec
from danbooru_index.index.completion import CompletionRecord, complete
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.shards import Shard
from danbooru_index.model.encoder import Encoder, EncoderStats
from danbooru_index.pipeline.protocol import SLICE_BYTES, Receipt, WorkerSettings, describe, shard_of_task
from danbooru_index.pipeline.supervision import Heartbeat, TooManyAttemptsError, check_attempts, note_loss, place
from danbooru_index.pipeline.worker_metrics import WorkerMetrics
from danbooru_index.pipeline.worker_model import local_model
from danbooru_index.records import Reason, Reject
from danbooru_index.storage.s3 import location

LARGEST_SLICE_ROWS = 16_384
TELL_EVERY_S = 0.5


class EncodeShard:
    """Stage 2, stateful: one model a GPU. Encodes a shard, writes its fragments, creates its completion record."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._specs = table_specs(settings.dim, settings.colbert_dim)
        self._problem = ""
        self._beat = Heartbeat(settings.hang_s)
        self._metrics = WorkerMetrics()
        self._told = time.monotonic()
        arm(settings.failpoints)
        try:
            self._encoder = (settings.encoder or load_encoder)(settings)
            self._beat.expect(self._encoder.call_s(settings.max_length))
        except DanbooruIndexError as error:
            self._problem = f"{error} ({place(settings)})" if settings.device == "cuda" else str(error)

    def __call__(self, rows: pa.Table) -> pa.Table:
        row = {name: rows[name][0] for name in rows.column_names}
        task = json.loads(row["task"].as_py())
        shard, problem = task["id"], self._problem or row["problem"].as_py()
        if problem:
            state = "suspect" if problem.startswith("suspect: ") else "failed"
            fatal = bool(self._problem) or row["fatal"].as_py()
            return Receipt(shard, state, problem.removeprefix("suspect: "), fatal).to_table()
        special = tuple(row["special"].as_py())
        tokens = TokenBatch(_flat(row["token_ids"]), _flat(row["lengths"]), special, row["truncated"].as_py())
        try:
            check_attempts(self._settings, shard, "encode")
            if task["kind"] == "check":
                reach("encode.check", shard)
                return Receipt(shard, "done").to_table(self._check(tokens))
            reach("encode.begin", shard)
            record = self._encode(shard_of_task(task), tokens, row)
            return Receipt(shard, "done", read=record.read).to_table()
        except TooManyAttemptsError as error:
            return Receipt(shard, "suspect", str(error)).to_table()
        except Exception as error:
            if "CUDA error" in str(error):
                note_loss(self._settings, shard, "encode", error)
                os._exit(71)  # the device is lost to this process: its attempts are counted, a new one takes over
            return Receipt(shard, "failed", describe(error)).to_table()

    def _encode(self, shard: Shard, tokens: TokenBatch, row: dict[str, Any]) -> CompletionRecord:
        """Slices of bounded size through the model and into fragments; then the completion record, last."""
        records, rejects = from_ipc(row["records"].as_py()), json.loads(row["rejects"].as_py())
        writer = ShardWriter(location(self._settings.generation), shard.id, self._specs)
        clock = {"started": time.time(), "write": 0.0}
        began = time.perf_counter()
        stats = EncoderStats()
        report = self._reporter(shard.id, tokens)
        kept = 0
        try:
            for start, stop in slices(tokens.lengths, self._settings.colbert_dim, self._settings.slice_bytes):
                with self._beat:
                    reach("encode.forward", shard.id)
                    encoding = self._encoder.encode(tokens.rows(start, stop), report, stats)
                part = records.slice(start, stop - start)
                if len(encoding.bad):
                    rejects += _non_finite(part, encoding.bad.tolist(), shard)
                    mask = np.ones(part.num_rows, dtype=bool)
                    mask[encoding.bad] = False
                    part, encoding = part.filter(pa.array(mask)), encoding.keep(mask)
                reach("encode.before_write", shard.id)
                at = time.perf_counter()
                writer.write(part, encoding)
                clock["write"] += time.perf_counter() - at
                kept += part.num_rows
            at = time.perf_counter()
            parts = writer.finish()
            clock["write"] += time.perf_counter() - at
        except BaseException:
            writer.discard()
            raise
        clock["ended"] = clock["started"] + time.perf_counter() - began  # whatever the wall clock did meanwhile
        clock |= {"read": row["seconds"].as_py(), "encode": stats.seconds}
        measured = clock | {
            "tokens": tokens.tokens,
            "truncated": tokens.truncated,
            "histogram": np.histogram(tokens.lengths, bins=(0, *HISTOGRAM_EDGES))[0].tolist(),
            "worker": self._worker(),
            "flops": stats.flops,
            "computed": stats.computed,
            "processed": stats.processed,
            "recomputed": stats.recomputed,
        }
        record = CompletionRecord(
            shard.id, self._settings.fingerprint, writer.attempt, kept, shard.rows, parts, rejects, measured
        )
        reach("encode.before_record", shard.id)
        if not complete(location(self._settings.generation), record):
            writer.discard()
        reach("encode.after_record", shard.id)
        self._metrics.add(kept, tokens.tokens, clock)
        return record

    def _reporter(self, shard: str, tokens: TokenBatch) -> Any:
        """Called with the rows of each device call: keeps the watchdog quiet, and tells the driver twice a second."""
        encoded = 0
        share = len(tokens.lengths)

        def report(rows: int) -> None:
            nonlocal encoded
            self._beat.tick()
            encoded += rows
            now = time.monotonic()
            if self._settings.board is not None and now - self._told > TELL_EVERY_S:
                self._told = now
                self._settings.board.report.remote(shard, min(encoded, share))

        return report

    def _check(self, tokens: TokenBatch) -> bytes:
        """The encodings of a few texts, for the driver's self-queries."""
        encoding = self._encoder.encode(tokens)
        buffer = io.BytesIO()
        arrays = {name: getattr(encoding, name) for name in encoding.__slots__}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def _worker(self) -> dict[str, Any]:
        return {
            "id": f"{os.uname().nodename}:{os.getpid()}",
            "tokens_per_batch": self._encoder.tokens_per_batch,
            "peak_memory": self._encoder.peak_memory,
        }


def load_encoder(settings: WorkerSettings) -> Encoder:
    """The real encoder, of BGE-M3's format. Raises `ModelError`, `DeviceError` or `StorageError` (for its codec)."""
    codec = load_codec(location(settings.generation), settings.codec)
    encoder = Encoder(
        local_model(settings),
        Device(settings.device),
        Precision(settings.precision),
        tokens_per_batch=settings.tokens_per_batch,
        threads=settings.threads,
        half_output=True,
        projection=None if codec is None else codec.matrix,
    )
    encoder.prepare(settings.shard_tokens)
    return encoder


def slices(lengths: np.ndarray[Any, Any], colbert_dim: int, slice_bytes: int = SLICE_BYTES) -> list[tuple[int, int]]:
    """Row ranges whose ColBERT vectors stay under `slice_bytes` (one long text may exceed it by itself)."""
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
        reject = Reject(Reason.NON_FINITE_OUTPUT, shard.path, 0, f"id {record['id']}", record["text"][:2000])
        rejects.append(json.loads(reject.to_json()))
    return rejects


def _flat(value: pa.Scalar) -> np.ndarray[Any, Any]:
    return np.asarray(value.values.to_numpy(zero_copy_only=False))


def from_ipc(content: bytes) -> pa.Table:
    """The table of an Arrow IPC stream."""
    return pa.ipc.open_stream(content).read_all()
