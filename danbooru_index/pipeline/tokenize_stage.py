"""Stage 1 in a Ray actor: a task -> its records, rejects and flat token ids."""

from __future__ import annotations

import time

import pyarrow as pa

from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import arm, reach
from danbooru_index.ingest.shards import read_shard
from danbooru_index.pipeline.protocol import Outcome, Task, TokenizedShard, WorkerSettings, describe
from danbooru_index.pipeline.supervision import TooManyAttemptsError, check_attempts
from danbooru_index.pipeline.worker_model import load_tokenizer, refuse_blindness


class TokenizeShard:
    """Reads and tokenises shards. A tokenizer that cannot be loaded is FATAL for each task."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._problem = ""
        arm(settings.failpoints)
        try:
            refuse_blindness(settings)
            self._tokenizer = load_tokenizer(settings)
        except DanbooruIndexError as error:
            self._problem = str(error)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self.tokenize(Task.from_item(rows), "read").to_row()

    def tokenize(self, task: Task, stage: str) -> TokenizedShard:
        """A task's records and tokens, or what became of it; attempts are counted by `stage`."""
        try:
            return self._tokenize(task, stage)
        except TooManyAttemptsError as error:
            return TokenizedShard(task, outcome=Outcome.SUSPECT, message=str(error))
        except Exception as error:
            # whatever a shard does to its reader is that shard's outcome, not this actor's end
            return TokenizedShard(task, outcome=Outcome.FAILED, message=describe(error))

    def _tokenize(self, task: Task, stage: str) -> TokenizedShard:
        started = time.perf_counter()
        if self._problem:
            return TokenizedShard(task, outcome=Outcome.FATAL, message=self._problem)
        check_attempts(self._settings, task.name, stage)
        reach("read.begin", task.name)
        if task.shard is None:
            return TokenizedShard(task, tokens=self._tokenizer(task.texts))
        records, rejects = read_shard(task.shard)
        tokens = self._tokenizer(records["text"].to_pylist())
        lines = tuple(reject.to_json().encode(errors="backslashreplace") for reject in rejects)
        return TokenizedShard(task, records, lines, tokens, seconds=time.perf_counter() - started)
