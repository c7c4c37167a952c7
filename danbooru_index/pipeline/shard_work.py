"""One shard on its way through an encoder: what is kept, rejected, reused and spent."""

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
from danbooru_index.embeddings import Embeddings, EncoderStats, TokenBatch, merge
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.index.completion import CompletionRecord, TablePart
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.origins import to_origins
from danbooru_index.index.reuse import Ints, Known, OldVectorReader
from danbooru_index.index.shard_stats import ShardStats, WorkerStats
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.protocol import TokenizedShard, WorkerSettings
from danbooru_index.records import Reason, Reject

LARGEST_SLICE_ROWS = 16_384
Encode = Callable[[TokenBatch, Callable[[int], None], EncoderStats], Embeddings]


@dataclass(slots=True)
class ShardWork:
    """One shard on its way through an encoder: what has been kept, rejected, reused and spent so
    far. `old`: where texts may have their vectors already; `times`: of each row kept, when it was
    encoded, in seconds since the epoch.
    """

    shard: Shard
    given: TokenizedShard
    writer: ShardWriter
    old: OldVectorReader | None = None
    times: list[Ints] = field(default_factory=list)
    reused: int = 0
    spoilt: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    write_s: float = 0.0
    encoded: EncoderStats = field(default_factory=EncoderStats)
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.rejects += [json.loads(line) for line in self.given.rejects]

    def known(self, start: int, stop: int) -> Known:
        """What of some rows an earlier generation has."""
        if self.old is None:
            return Known(np.zeros(stop - start, dtype=bool))
        return self.old.known(self.given.records["text"].slice(start, stop - start).to_pylist())

    def embed(
        self, encode: Encode, rows: tuple[int, int], known: Known, report: Callable[[int], None]
    ) -> Embeddings:
        """The embeddings of the rows `rows[0]` to `rows[1]`: what is known, the rest encoded."""
        tokens, mask = self.given.tokens.rows(*rows), known.mask
        if known.embeddings is None:
            return encode(tokens, report, self.encoded)
        report(len(known.embeddings.dense))
        if mask.all():
            return known.embeddings
        encoded = encode(tokens.take(np.flatnonzero(~mask)), report, self.encoded)
        return merge(mask, known.embeddings, encoded)

    def finite(
        self, start: int, known: Known, embeddings: Embeddings
    ) -> tuple[pa.Table, Embeddings]:
        """The records from row `start` on and their embeddings, without those that are not finite,
        which are rejected; notes what is kept.
        """
        records = self.given.records.slice(start, len(known.mask))
        times = np.full(len(known.mask), int(self.started), np.int64)
        if known.encoded_at is not None:
            times[known.mask] = known.encoded_at
        if len(embeddings.non_finite):
            self.rejects += non_finite_rejects(records, embeddings.non_finite.tolist(), self.shard)
            finite = np.ones(records.num_rows, dtype=bool)
            finite[embeddings.non_finite] = False
            records, times = records.filter(pa.array(finite)), times[finite]
            embeddings = embeddings.keep(finite)
        self.times.append(times)
        self.reused += int(known.mask.sum())
        self.spoilt += known.spoilt
        self.kept += records.num_rows
        return records, embeddings

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
            origins=to_origins(np.concatenate(self.times)) if self.reused else [],
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
            reused=self.reused,
            spoilt=self.spoilt,
            histogram=tuple(np.histogram(tokens.lengths, bins=(0, *HISTOGRAM_EDGES))[0].tolist()),
            worker=worker,
        )


def old_vectors_of(settings: WorkerSettings) -> OldVectorReader | None:
    """What reads the vectors of an earlier generation in this actor, where a build reuses them."""
    if not settings.reuses:
        return None
    import ray
    from ray.exceptions import RayError

    try:
        [old] = ray.get(settings.progress.old_vectors.remote())
        checked = settings.attempts / "checked"
        checked.make_folder()
        return OldVectorReader(ray.get(old), checked)
    except (RayError, OSError, DanbooruIndexError):
        return None  # this actor encodes all it gets


def worker_stats(encoder: Any) -> WorkerStats:
    """Who encodes here, and with what."""
    return WorkerStats(
        id=f"{os.uname().nodename}:{os.getpid()}",
        tokens_per_batch=encoder.tokens_per_batch,
        peak_memory=encoder.peak_memory,
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
