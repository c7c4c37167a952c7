"""What travels between the driver and its actors: one row = one shard, in as a task, out as a small result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import Failpoint
from danbooru_index.index.codec import FULL
from danbooru_index.ingest.shards import Shard
from danbooru_index.model.encoder import TextEncoder

SLICE_BYTES = 128 << 20
HANG_S: float | None = None  # None: from the model's size and the calls measured


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


def describe(error: Exception) -> str:
    """An error in one line: this project's say what to do; of others, the kind too."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, DanbooruIndexError) else f"{type(error).__name__}: {text}"


def shard_of_task(task: dict[str, Any]) -> Shard:
    """The shard that a task names."""
    fields = {name: task[name] for name in ("id", "path", "start", "rows", "digest")}
    return Shard(**fields, stamp=tuple(task["stamp"]), drop=tuple(task["drop"]))
