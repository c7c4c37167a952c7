"""Which nodes join and leave while a job runs, and how long was none left that could work?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from danbooru_index.cluster.autoscaling import TELL_EVERY_S
from danbooru_index.durations import said_duration
from danbooru_index.log_lines import event

log = logging.getLogger(__name__)


@dataclass(slots=True)
class NodeWatch:
    """What one job needs of a node (`num_cpus`, `num_gpus`), and how long it does without any.

    `look` is called every second or so; what has changed is logged.
    """

    num_cpus: float
    num_gpus: float
    limit_s: float
    nodes: Callable[[], list[dict[str, Any]]]
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, str] | None = None  # host name by node id
    _since: float | None = None
    _told: float = 0.0

    def look(self) -> tuple[set[str], bool]:
        """Look once; the ids of nodes that have gone, and whether no node could work for longer
        than the limit.
        """
        able = {
            node["NodeID"]: str(node.get("NodeManagerHostname") or node["NodeManagerAddress"])
            for node in self.nodes()
            if node["Alive"] and self._can_work(node["Resources"])
        }
        before = able if self._known is None else self._known
        left = before.keys() - able.keys()
        for gone in left:
            name = f"{before[gone]} ({gone[:8]})"
            log.info(
                f"node {name} is gone; what it had in hand is encoded elsewhere",
                extra=event("node_gone", node=before[gone], node_id=gone),
            )
        for new in able.keys() - before.keys():
            log.info(
                f"node {able[new]} ({new[:8]}) has joined",
                extra=event("node_joined", node=able[new], node_id=new),
            )
        self._known = able
        return left, self._too_long(bool(able))

    def _can_work(self, resources: Mapping[str, float]) -> bool:
        return resources.get("GPU", 0) >= self.num_gpus and resources.get("CPU", 0) >= self.num_cpus

    def _too_long(self, able: bool) -> bool:
        """Count the time without a node that can work; say so once a minute."""
        now = self.clock()
        if able:
            self._since = None
            return False
        if self._since is None:
            self._since = now
            self._told = now - TELL_EVERY_S
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            what = "GPU" if self.num_gpus else "CPU"
            waited, limit = said_duration(now - self._since), said_duration(self.limit_s)
            log.info(
                f"waiting for a node with a {what}: none is left, {waited} of {limit}"
                " (--wait-for-nodes)",
                extra=event("waiting_for_node", seconds=round(now - self._since)),
            )
        return now - self._since > self.limit_s
