"""Which shard does an idle encoder encode a second time?

Near its end a run waits for what slow encoders, and nodes that are gone, still hold. Backup tasks
(Dean and Ghemawat, MapReduce, OSDI 2004, section 3.6) run those shards again elsewhere; whichever
attempt is first creates the completion record. Imports next to nothing: see `progress_actor`.

Ray Data ends idle encoders once all its input is consumed, of just those that are to help. So its
input is kept open (see `dataset`) for as long as `may_help` says.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

LATE = 1.5  # times as long as a shard of its size takes
LATE_GRACE_S = 1.0
LOST_S = 10.0  # for a shard that nobody has begun: it may be on its way
LOST_WITH_A_NODE_S = 2.0
RECENT = 256
# with shards on offer: nobody will begin one any more
STILL_S = 60.0
STILL_AT_FIRST_S = 1800.0  # before any is done: nodes start, models are fetched and loaded


@dataclass(slots=True)
class _Attempts:
    """The attempts at one shard: who began it when, by a monotonic clock."""

    begun: dict[str, float] = field(default_factory=dict)
    helped: dict[str, float] = field(default_factory=dict)


class BackupTasks:
    """The shards that the driver still waits for, and who is at work on each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attempts: dict[str, _Attempts] = {}
        self._offered: dict[str, tuple[bytes, int, float]] = {}  # task, rows, since when
        self._settled: set[str] = set()
        self._seconds_a_row: deque[float] = deque(maxlen=RECENT)
        self._lost_s = LOST_S
        self._active = clock()

    def active(self) -> None:
        """An encoder is at work."""
        self._active = self._clock()

    def begin(self, shard: str, worker: str) -> None:
        """`worker` begins to encode a shard."""
        self._active = self._clock()
        self._attempts.setdefault(shard, _Attempts()).begun[worker] = self._active

    def end(self, shard: str, worker: str, rows: int) -> None:
        """`worker` has completed a shard of so many rows."""
        begun = self._attempts.get(shard, _Attempts()).begun.get(worker)
        if begun is not None:
            self._seconds_a_row.append((self._clock() - begun) / max(1, rows))
        self.settle(shard)

    def settle(self, shard: str) -> None:
        """Nothing is to be done about a shard any more."""
        self.active()
        self._settled.add(shard)
        self._attempts.pop(shard, None)
        self._offered.pop(shard, None)

    def node_gone(self, node: str) -> None:
        """What the workers of a node had in hand is late: workers are named `node:...`."""
        self._lost_s = LOST_WITH_A_NODE_S
        for attempts in self._attempts.values():
            for begun in (attempts.begun, attempts.helped):
                for worker in [name for name in begun if name.startswith(f"{node}:")]:
                    del begun[worker]

    def offer(self, tasks: Mapping[str, tuple[bytes, int]]) -> None:
        """The driver waits for these shards and for no others: (task, rows) by shard."""
        for shard, (task, rows) in tasks.items():
            if shard not in self._settled and shard not in self._offered:
                self._offered[shard] = (task, rows, self._clock())

    def may_help(self) -> bool:
        """Whether an encoder may still be given a shard: not where some are on offer, nobody is at
        work, and none of it changed for long.
        """
        still = STILL_S if self._seconds_a_row else STILL_AT_FIRST_S
        return not self._offered or self._clock() - self._active < still

    def claim(self, worker: str) -> bytes | None:
        """The task that `worker` is to do again; empty: there will be one if something is late."""
        if not self._offered:
            return None
        if not self._seconds_a_row:
            return b""
        usual, now = median(self._seconds_a_row), self._clock()
        latest, chosen = 1.0, ""
        for shard, (_, rows, since) in self._offered.items():
            attempts = self._attempts.get(shard, _Attempts())
            if worker in attempts.begun or worker in attempts.helped:
                continue
            started = [*attempts.begun.values(), *attempts.helped.values()]
            allowed = LATE * usual * rows + (LATE_GRACE_S if started else self._lost_s)
            last = max(started, default=since)
            if (now - last) / allowed > latest:
                latest, chosen = (now - last) / allowed, shard
        if not chosen:
            return b""
        self.active()
        self._attempts.setdefault(chosen, _Attempts()).helped[worker] = now
        return self._offered[chosen][0]
