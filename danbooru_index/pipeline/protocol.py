"""What travels between driver and actors: one row is one shard, a task in, a result out.

Vectors never travel: the encoding actor writes them itself. A message knows its Arrow row
(`to_row`, `from_row`); nothing here raises into Ray: what went wrong is an `Outcome` and
one line. Long because all messages stand in one module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from danbooru_index.config import EncoderFactory
from danbooru_index.embeddings import Embeddings, TokenBatch
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import Failpoint
from danbooru_index.index.codec import FULL
from danbooru_index.ingest.shards import RECORD_SCHEMA, Shard
from danbooru_index.pipeline.payloads import flat, pack_embeddings, to_stream, unpack_embeddings
from danbooru_index.pipeline.sight import Sight
from danbooru_index.storage.base import Storage
from danbooru_index.storage.local import LocalStorage

NOWHERE = LocalStorage(Path())  # before there is a generation
SAMPLES = "samples"  # the name of the task that is no shard
TASK_ITEM = "task"  # the one column of a task on its way to a tokeniser: an Arrow stream

TASK_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string()),
        pa.field("path", pa.binary()),  # a file's name need not be UTF-8
        pa.field("start", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("digest", pa.string()),
        pa.field("stamp", pa.list_(pa.int64())),
        pa.field("drop", pa.list_(pa.int64())),
        pa.field("nsfw_words", pa.bool_()),
        pa.field("texts", pa.list_(pa.string())),
    ]
)
TOKENIZED_SCHEMA = pa.schema(
    [
        *TASK_SCHEMA,
        pa.field("records", pa.large_binary()),  # an Arrow stream
        # JSON lines, as the rejects file has them
        pa.field("rejects", pa.list_(pa.large_binary())),
        pa.field("token_ids", pa.large_list(pa.int32())),
        pa.field("lengths", pa.large_list(pa.int32())),
        pa.field("special", pa.list_(pa.int32())),
        pa.field("truncated", pa.int64()),
        pa.field("outcome", pa.string()),
        pa.field("message", pa.string()),
        pa.field("seconds", pa.float64()),
    ]
)
RESULT_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("message", pa.string()),
        pa.field("read", pa.int64()),
        pa.field("samples", pa.large_binary()),
        pa.field("node", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """From what an actor builds its tokeniser or encoder; `shard_tokens`: about what its shards
    will hold.

    `progress`: the handle of the actor that is told how far a shard is, and from which encoders
    that have nothing to do take what others are late with, where there are `backups`. `sight`: what
    the driver's node sees, and its own must see. `reuses`: that actor has the vectors which may
    be used again.
    """

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
    slice_bytes: int
    hang_s: float | None = None
    shard_tokens: int = 0
    generation: Storage = NOWHERE
    sight: Sight | None = None
    fingerprint: str = ""
    codec: str = FULL
    attempts: Storage = NOWHERE
    attempt_limit: int = 1
    failpoints: tuple[Failpoint, ...] = ()
    progress: Any = None
    backups: bool = False
    reuses: bool = False
    encoder: EncoderFactory | None = None


class Outcome(Enum):
    """What became of a task. SUSPECT: its actor died too often; FATAL: the run ends."""

    DONE = "done"
    SUSPECT = "suspect"
    FAILED = "failed"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class Task:
    """What an actor is to do: encode a shard, or the samples' texts for the self-check."""

    shard: Shard | None = None
    texts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The shard's id, `SAMPLES` for the samples."""
        return SAMPLES if self.shard is None else self.shard.id

    def to_item(self) -> dict[str, bytes]:
        """The task as an item of `from_items`.

        `from_arrow` asks a remote task about every table, 2 ms each (measured); from plain items
        Ray would infer other types where lists are empty.
        """
        return {TASK_ITEM: self.to_bytes()}

    @classmethod
    def from_item(cls, row: pa.Table) -> Task:
        """The task in a block that Ray made of an item."""
        return cls.from_bytes(row[TASK_ITEM][0].as_buffer())

    def to_bytes(self) -> bytes:
        """The task as an Arrow stream of one row."""
        return to_stream(pa.table(self.columns(), schema=TASK_SCHEMA))

    @classmethod
    def from_bytes(cls, stream: bytes | pa.Buffer) -> Task:
        """The task that `to_bytes` wrote."""
        return cls.from_row(pa.ipc.open_stream(stream).read_all())

    def columns(self) -> dict[str, list[Any]]:
        """The columns of one row."""
        shard = self.shard or Shard(SAMPLES, "", 0, 0, "")
        numbers = (shard.start, shard.rows, shard.digest, list(shard.stamp), list(shard.drop))
        values = (
            *(shard.id, os.fsencode(shard.path), *numbers),
            *(shard.nsfw_words, list(self.texts)),
        )
        return {name: [value] for name, value in zip(TASK_SCHEMA.names, values, strict=True)}

    @classmethod
    def from_row(cls, row: pa.Table) -> Task:
        values = {name: row[name][0].as_py() for name in TASK_SCHEMA.names}
        if values["shard"] == SAMPLES:
            return cls(texts=tuple(values["texts"]))
        size, changed = values["stamp"]
        return cls(
            Shard(
                values["shard"],
                os.fsdecode(values["path"]),
                values["start"],
                values["rows"],
                values["digest"],
                (size, changed),
                tuple(values["drop"]),
                values["nsfw_words"],
            )
        )


@dataclass(frozen=True, slots=True)
class TokenizedShard:
    """A task with its records (`RECORD_SCHEMA`), its rejects (JSON lines) and its tokens;
    `seconds`: what that took.

    Where `outcome` is not DONE there are none, and `message` says why.
    """

    task: Task
    records: pa.Table = field(default_factory=RECORD_SCHEMA.empty_table)
    rejects: tuple[bytes, ...] = ()
    tokens: TokenBatch = field(
        default_factory=lambda: TokenBatch(np.empty(0, np.int32), np.empty(0, np.int32), ())
    )
    outcome: Outcome = Outcome.DONE
    message: str = ""
    seconds: float = 0.0

    def to_row(self) -> pa.Table:
        tokens = self.tokens
        columns = self.task.columns() | {
            "records": [to_stream(self.records)],
            "rejects": [list(self.rejects)],
            "token_ids": pa.array([tokens.token_ids], pa.large_list(pa.int32())),
            "lengths": pa.array([tokens.lengths], pa.large_list(pa.int32())),
            "special": [list(tokens.special)],
            "truncated": [tokens.truncated],
            "outcome": [self.outcome.value],
            "message": [self.message],
            "seconds": [self.seconds],
        }
        return pa.table(columns, schema=TOKENIZED_SCHEMA)

    @classmethod
    def from_row(cls, row: pa.Table) -> TokenizedShard:
        special = tuple(row["special"][0].as_py())
        tokens = TokenBatch(
            flat(row["token_ids"][0]), flat(row["lengths"][0]), special, row["truncated"][0].as_py()
        )
        return cls(
            Task.from_row(row),
            pa.ipc.open_stream(row["records"][0].as_buffer()).read_all(),
            tuple(row["rejects"][0].as_py()),
            tokens,
            Outcome(row["outcome"][0].as_py()),
            row["message"][0].as_py(),
            row["seconds"][0].as_py(),
        )


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a task: `read` records of a shard that is DONE, the samples' embeddings. What
    a shard cost is in its completion record. `node`: the host name of whoever says so.
    """

    shard: str
    outcome: Outcome
    message: str = ""
    read: int = 0
    samples: Embeddings | None = None
    node: str = ""

    def to_row(self) -> pa.Table:
        payload = b"" if self.samples is None else pack_embeddings(self.samples)
        node = os.uname().nodename
        values = (self.shard, self.outcome.value, self.message, self.read, payload, node)
        return pa.table(
            {f.name: [value] for f, value in zip(RESULT_SCHEMA, values, strict=True)},
            schema=RESULT_SCHEMA,
        )

    @classmethod
    def from_row(cls, row: pa.Table) -> ShardResult:
        values = {name: row[name][0].as_py() for name in RESULT_SCHEMA.names}
        samples = unpack_embeddings(values["samples"]) if values["samples"] else None
        return cls(
            values["shard"],
            Outcome(values["outcome"]),
            values["message"],
            values["read"],
            samples,
            values["node"],
        )


def describe(error: Exception) -> str:
    """An error in one line: this project's say what to do; of others, the kind too."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, DanbooruIndexError) else f"{type(error).__name__}: {text}"
