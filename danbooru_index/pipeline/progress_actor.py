"""How far each shard is, told by the encoding actors: the bar moves within a shard, and what is
late is begun again elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from danbooru_index.pipeline.backup_tasks import BackupTasks

HELP_EVERY_S = 1.0


class ProgressActor:
    """A small actor that knows how far each shard is. It lives in a module that imports next to
    nothing, since its process is one of those that start when a build does.
    """

    def __init__(self, old: Sequence[Any] = ()) -> None:
        self._old = old
        self._rows: dict[str, int] = {}
        self._completed: dict[str, tuple[int, str]] = {}
        self._settled: set[str] = set()
        self._backups = BackupTasks()

    def old_vectors(self) -> Sequence[Any]:
        """A reference to the vectors of an earlier generation, where they may be used again. Among
        the arguments of an actor that Ray starts again it would make Ray warn.
        """
        return self._old

    def report(self, shard: str, rows: int) -> None:
        """`rows` of a shard are encoded; a retried shard counts once."""
        self._backups.active()
        if shard not in self._settled:
            self._rows[shard] = max(rows, self._rows.get(shard, 0))

    def begin(self, shard: str, worker: str) -> None:
        """`worker` begins to encode a shard."""
        self._backups.begin(shard, worker)

    def end(self, shard: str, worker: str, read: int, host: str) -> None:
        """`worker`, on a machine of this name, has completed a shard."""
        self._completed[shard] = read, host
        self._backups.end(shard, worker, read)

    def underway(self, settled: Sequence[str]) -> tuple[int, dict[str, tuple[int, str]]]:
        """The rows encoded of shards that are not settled, and (records read, host name) of those
        that an encoder completed; `settled`: what the driver newly knows of.
        """
        self._settled.update(settled)
        for shard in settled:
            self._rows.pop(shard, None)
            self._completed.pop(shard, None)
            self._backups.settle(shard)
        return sum(self._rows.values()), self._completed

    def offer(self, tasks: Mapping[str, tuple[bytes, int]]) -> None:
        """The driver waits for these shards and for no others: (task, rows) by shard."""
        self._backups.offer(tasks)

    def node_gone(self, node: str) -> None:
        """A node of this id is there no more."""
        self._backups.node_gone(node)

    def claim(self, worker: str) -> bytes | None:
        """A task for an encoder that has none; empty: nothing is late, None: nor will be soon."""
        return self._backups.claim(worker)

    def may_help(self) -> bool:
        """Whether encoders without work are to be kept."""
        return self._backups.may_help()


def wait_while_encoders_help(rows: Any, progress: Any) -> Any:
    """None of the rows, after a wait for as long as encoders may be given shards, and the progress
    actor is there.
    """
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(RayError):
        while ray.get(progress.may_help.remote()):
            time.sleep(HELP_EVERY_S)
    return rows.slice(0, 0)
