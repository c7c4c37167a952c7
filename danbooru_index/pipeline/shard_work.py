"""One shard on its way through an encoder: what is kept, rejected and spent."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from danbooru_index.config import HISTOGRAM_EDGES
from danbooru_index.embeddings import EncoderStats
from danbooru_index.index.completion import CompletionRecord, ShardStats, TablePart, WorkerStats
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.protocol import TokenizedShard
from danbooru_index.records import Reason, Reject

LARGEST_SLICE_ROWS = 16_384


@dataclass(slots=True)
class ShardWork:
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


def non_finite_rejects(records: pa.Table, rows: list[int], shard: Shard) -> list[dict[str, Any]]:
    """The rejects of these rows of a shard, whose outputs are not finite."""
    rejects = []
    for row in rows:
        record = records.slice(row, 1).to_pylist()[0]
        reject = Reject(
            Reason.NON_FINITE_OUTPUT, shard.path, 0, f"id {record['id']}", record["text"][:2000]
        )
        rejects.append(json.loads(reject.to_json()))
    return rejects
