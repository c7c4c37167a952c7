"""Stage 1 in a Ray actor: a task -> its records, rejects and flat token ids."""

from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa

from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import arm, reach
from danbooru_index.ingest.shards import read_shard
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.pipeline.protocol import WorkerSettings, describe, shard_of_task
from danbooru_index.pipeline.supervision import TooManyAttemptsError, check_attempts
from danbooru_index.pipeline.worker_model import local_model
from danbooru_index.records import Reject


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
                    records, rejects = read_shard(shard_of_task(task))
                    tokens = self._tokenizer(records["text"].to_pylist())
        except TooManyAttemptsError as error:
            problem = f"suspect: {error}"
        except Exception as error:
            problem = describe(error)
        return pa.table(
            {
                "task": rows["task"],
                "records": pa.array([to_ipc(records)], pa.large_binary()),
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


def load_tokenizer(settings: WorkerSettings) -> Tokenizer:
    """The tokenizer of the model. Raises `ModelError`."""
    return Tokenizer(local_model(settings), settings.max_length)


def to_ipc(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
