"""What the driver does once a second while encoders work: it shows how far they are, offers what is
late to those that are idle, and looks which nodes are there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence, Set
from typing import Any, Protocol, Self

from danbooru_index.cluster.node_watch import NodeWatch
from danbooru_index.durations import said_duration
from danbooru_index.errors import ClusterError
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.plan import BuildPlan
from danbooru_index.pipeline.protocol import Outcome, ShardResult, Task
from danbooru_index.progress import Progress
from danbooru_index.signals import raise_in

EVERY_S = 1.0
QUIET_S = 20.0  # without a shard done, all that are left are offered
MOST_OFFERED = 1000


class PassOverError(Exception):
    """Raised in the driver's loop where no further row is to be waited for."""


class Outcomes(Protocol):
    """What has come back so far, by shard."""

    done: dict[str, int]

    @property
    def settled(self) -> set[str]: ...

    def has_all(self, shards: Set[str]) -> bool: ...

    def take(self, result: ShardResult) -> None: ...


class Watch:
    """A context around the driver's loop over results, with a thread that looks once a second.

    A row is all that Ray Data wakes the loop with. A shard that another encoder took over may be
    done without one, and where no node is left none comes: `PassOverError` ends the loop then.
    """

    def __init__(
        self,
        progress: Progress,
        outcome: Outcomes,
        shards: Sequence[Shard],
        told: Any,
        plan: BuildPlan,
    ) -> None:
        import ray

        self._progress, self._outcome = progress, outcome
        self._shards = {shard.id: shard for shard in shards}
        self._told, self._plan = told, plan
        needs = (plan.cluster.num_cpus, float(plan.cluster.num_gpus))
        self._nodes = NodeWatch(*needs, plan.config.wait_for_nodes_s, ray.nodes)
        self._known: set[str] = set()
        self._offered: set[str] = set()
        self._few = 2 * plan.cluster.in_hand
        self._last = time.monotonic()
        self._ending = threading.Lock()
        self._ended, self._no_node, self._over = threading.Event(), False, False
        self._loop = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._ending:
            self._ended.set()
        self._thread.join(timeout=1.5)
        self._progress.show(sum(self._outcome.done.values()))

    def raise_if_no_node_is_left(self) -> None:
        """Raise `ClusterError` where that is why the loop was ended."""
        if self._no_node:
            waited = said_duration(self._plan.config.wait_for_nodes_s)
            raise ClusterError(
                f"no node of the cluster could work for {waited} (--wait-for-nodes); completed"
                " shards are kept: run the same command to go on"
            )

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            # a late answer, or none, is no reason to stop looking
            with contextlib.suppress(Exception):
                self._look()

    def _look(self) -> None:
        import ray

        settled = self._outcome.settled
        underway = self._told.underway.remote(list(settled - self._known))
        if settled - self._known:
            self._known, self._last = settled, time.monotonic()
        if left := self._to_offer():
            self._told.offer.remote(left)
        rows, completed = ray.get(underway, timeout=EVERY_S)
        for shard, (read, host) in completed.items():
            self._outcome.take(ShardResult(shard, Outcome.DONE, read=read, node=host))
        self._progress.show(sum(self._outcome.done.values()) + rows)
        gone, self._no_node = self._nodes.look()
        for node in gone:
            self._told.node_gone.remote(node)
            self._few = MOST_OFFERED
        over_before, self._over = self._over, self._outcome.has_all(self._shards.keys())
        with self._ending:
            # a loop that has all its rows ends by itself before the next look
            if (over_before or self._no_node) and not self._ended.is_set():
                self._ended.set()
                raise_in(self._loop, PassOverError)

    def _to_offer(self) -> dict[str, tuple[bytes, int]]:
        """The last shards as (task, rows) by id: few are left, or none was done for a while."""
        count = len(self._shards) - len(self._known)
        if count > self._few and time.monotonic() - self._last < QUIET_S:
            return {}
        known = self._known | self._offered
        left = [shard for name, shard in self._shards.items() if name not in known][:MOST_OFFERED]
        self._offered |= {shard.id for shard in left}
        return {shard.id: (Task(shard).to_bytes(), shard.rows) for shard in left}
