"""The two stages that run in Ray actors: read and tokenise a shard; encode it, write it, mark it complete.

One row = one shard travels: in as a task, between the stages as flat token ids, out as a small receipt. Vectors never
travel: the encoding actor writes them itself. Nothing here raises into Ray: what went wrong is said in the receipt.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from danbooru_index.config import HISTOGRAM_EDGES, Device, Precision
from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import DanbooruIndexError, ModelError, first_line
from danbooru_index.failpoints import Failpoint, arm, reach
from danbooru_index.index.codec import FULL, load_codec
from danbooru_index.index.fragments import CompletionRecord, ShardWriter, complete
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.shards import Shard, read_shard
from danbooru_index.model.checkpoint import model_id, resolve_model, stamp_of
from danbooru_index.model.encoder import Encoder, EncoderStats, TextEncoder, Tokenizer
from danbooru_index.records import Reason, Reject
from danbooru_index.storage.local import claim, make_folder, replace_file
from danbooru_index.storage.s3 import location

SLICE_BYTES = 128 << 20
LARGEST_SLICE_ROWS = 16_384
HANG_S: float | None = None  # None: from the model's size and the calls measured
SHORTEST_HANG_S = 60.0
TELL_EVERY_S = 0.5
SLOWER = 20


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The recipe from which an actor builds its tokeniser or encoder; `shard_tokens`: about what its shards will hold."""

    model: str
    model_path: str
    model_id: str
    model_stamp: str
    device: str
    precision: str
    max_length: int
    dim: int
    colbert_dim: int
    tokens_per_batch: int | None
    threads: int | None
    shard_tokens: int = 0
    generation: str = ""
    fingerprint: str = ""
    codec: str = FULL
    attempts: str = ""
    attempt_limit: int = 1
    failpoints: tuple[Failpoint, ...] = ()
    hang_s: float | None = HANG_S
    slice_bytes: int = SLICE_BYTES
    board: Any = None
    encoder: Callable[[WorkerSettings], TextEncoder] | None = None


@dataclass(slots=True)
class Receipt:
    """What became of a shard: `done` (`read` records), `suspect` (its actor died too often) or `failed`; `fatal` ends the
    whole run. What a shard cost is in its completion record."""

    shard: str
    state: str
    message: str = ""
    fatal: bool = False
    read: int = 0

    def to_table(self, payload: bytes = b"") -> pa.Table:
        """The row that travels back to the driver."""
        return pa.table({"receipt": [json.dumps(asdict(self))], "payload": pa.array([payload], pa.large_binary())})


def task_row(shard: Shard) -> dict[str, str]:
    """A shard as the pipeline's input row."""
    return {"task": json.dumps({"kind": "shard", **asdict(shard)})}


def check_row(texts: list[str]) -> dict[str, str]:
    """Texts to encode by themselves, for the self-check of the finished tables."""
    return {"task": json.dumps({"kind": "check", "texts": texts, "id": "check"})}


class TokenizeShard:
    """Stage 1: a task -> its records, rejects and flat token ids."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._problem = ""
        arm(settings.failpoints)
        try:
            self._tokenizer = load_tokenizer(settings)
        except DanbooruIndexError as error:
            self._problem = str(error)

    def __call__(self, rows: pa.Table) -> pa.Table:
        task = json.loads(rows["task"][0].as_py())
        started = time.perf_counter()
        records, tokens = pa.table({}), TokenBatch(np.empty(0, np.int32), np.empty(0, np.int32), ())
        rejects: list[Reject] = []
        problem = ""
        try:
            if self._problem:
                problem = self._problem
            else:
                check_attempts(self._settings, task["id"], "read")
                reach("read.begin", task["id"])
                if task["kind"] == "check":
                    tokens = self._tokenizer(task["texts"])
                else:
                    records, rejects = read_shard(_shard(task))
                    tokens = self._tokenizer(records["text"].to_pylist())
        except TooManyAttemptsError as error:
            problem = f"suspect: {error}"
        except Exception as error:
            problem = describe(error)
        return pa.table(
            {
                "task": rows["task"],
                "records": pa.array([_to_ipc(records)], pa.large_binary()),
                "rejects": pa.array([json.dumps([json.loads(r.to_json()) for r in rejects])], pa.large_string()),
                "token_ids": pa.array([tokens.token_ids], pa.large_list(pa.int32())),
                "lengths": pa.array([tokens.lengths], pa.large_list(pa.int32())),
                "special": pa.array([tokens.special], pa.list_(pa.int32())),
                "truncated": [tokens.truncated],
                "problem": [problem],
                "fatal": [bool(self._problem)],
                "seconds": [time.perf_counter() - started],
            }
        )


class EncodeShard:
    """Stage 2, stateful: one model a GPU. Encodes a shard, writes its fragments, creates its completion record."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._specs = table_specs(settings.dim, settings.colbert_dim)
        self._problem = ""
        self._beat = Heartbeat(settings.hang_s)
        self._metrics = _Metrics()
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
            record = self._encode(_shard(task), tokens, row)
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
        records, rejects = _from_ipc(row["records"].as_py()), json.loads(row["rejects"].as_py())
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


def load_tokenizer(settings: WorkerSettings) -> Tokenizer:
    """The tokenizer of the model. Raises `ModelError`."""
    return Tokenizer(local_model(settings), settings.max_length)


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


def describe(error: Exception) -> str:
    """An error in one line: this project's say what to do; of others, the kind too."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, DanbooruIndexError) else f"{type(error).__name__}: {text}"


class TooManyAttemptsError(Exception):
    """A shard was begun too often and never ended: it may be what kills its actors."""


def check_attempts(settings: WorkerSettings, shard: str, stage: str) -> None:
    """Count one more attempt at a shard, in files, which outlive the actor; raise `TooManyAttemptsError` at the limit."""
    folder = location(settings.attempts)
    make_folder(folder)
    for number in range(settings.attempt_limit):
        if claim(folder / f"{shard}.{stage}.{number}"):
            return
    why = b""
    with contextlib.suppress(OSError):
        why = (folder / f"{shard}.{stage}.why").read_bytes()
    raise TooManyAttemptsError(f"its {stage} actor died {settings.attempt_limit} times{why.decode(errors='replace')}")


def note_loss(settings: WorkerSettings, shard: str, stage: str, error: Exception) -> None:
    """Leave word of what ends this process, and where: of eight cards one may be bad."""
    said = f", the last time on {place(settings)}: {first_line(error)}"
    with contextlib.suppress(Exception):
        replace_file(location(settings.attempts) / f"{shard}.{stage}.why", said.encode())


def place(settings: WorkerSettings) -> str:
    """The machine, and the card, of this process."""
    card = f", GPU {os.environ.get('CUDA_VISIBLE_DEVICES', 'unknown')}" if settings.device == "cuda" else ""
    return os.uname().nodename + card


class Heartbeat:
    """A watchdog: ends this process when a device call does not end, so that a hang ends too.

    The limit is what the encoder says that a call may take on a slow device, or `SLOWER` times the slowest so far where
    that is more; never less than a minute. A limit given is the limit.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self._fixed = limit_s
        self._expected_s = math.inf
        self._limit_s = limit_s or math.inf
        self._running = 0
        self._counting = threading.Lock()
        self._last = time.monotonic()
        self._slowest = 0.0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def expect(self, call_s: float) -> None:
        """Say how long a device call may take."""
        self._expected_s = max(SHORTEST_HANG_S, call_s)
        self._limit_s = self._fixed or self._expected_s

    def tick(self) -> None:
        """A device call has ended."""
        now = time.monotonic()
        self._slowest = max(self._slowest, now - self._last)
        self._last = now
        self._limit_s = self._fixed or max(self._expected_s, SLOWER * self._slowest)

    def __enter__(self) -> None:
        with self._counting:
            if not self._running:
                self._last = time.monotonic()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._counting:
            self._running -= 1

    def _watch(self) -> None:
        while True:
            time.sleep(min(5.0, self._limit_s / 4))
            if self._running and time.monotonic() - self._last > self._limit_s:
                os._exit(70)


class _Metrics:
    """Ray metrics: records, tokens and seconds by stage, for whoever scrapes the cluster."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter as RayCounter

        self._records = RayCounter("danbooru_index_records", description="Records written to all three tables")
        self._tokens = RayCounter("danbooru_index_tokens", description="Tokens encoded")
        self._seconds = RayCounter("danbooru_index_seconds", description="Seconds by stage", tag_keys=("stage",))

    def add(self, records: int, tokens: int, clock: dict[str, float]) -> None:
        if records:
            self._records.inc(records)
        if tokens:
            self._tokens.inc(tokens)
        for stage in ("read", "encode", "write"):
            if clock[stage] > 0:
                self._seconds.inc(clock[stage], tags={"stage": stage})


def local_model(settings: WorkerSettings) -> str:
    """The folder of the model on this machine; fetched where the driver's folder is not here. Raises `ModelError`."""
    path = settings.model_path
    if not Path(path).is_dir():
        try:
            path = resolve_model(settings.model).path
        except DanbooruIndexError as error:
            raise ModelError(
                f"{settings.model_path} is not on node {os.uname().nodename}; put the model on shared storage ({error})"
            ) from None
    if stamp_of(Path(path)) != settings.model_stamp and model_id(Path(path)) != settings.model_id:
        raise ModelError(f"{path} on node {os.uname().nodename} is not the model this build began with")
    return path


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


def _shard(task: dict[str, Any]) -> Shard:
    fields = {name: task[name] for name in ("id", "path", "start", "rows", "digest")}
    return Shard(**fields, stamp=tuple(task["stamp"]), drop=tuple(task["drop"]))


def _flat(value: pa.Scalar) -> np.ndarray[Any, Any]:
    return np.asarray(value.values.to_numpy(zero_copy_only=False))


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _from_ipc(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
