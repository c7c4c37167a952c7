"""Named points where a test may inject a fault. They cost nothing when off; no option sets them.

A driver arms its own process; actors get theirs with their settings, since a driver's environment
does not reach a running cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from danbooru_index.errors import StorageError

ACTOR_POINTS = (
    "read.begin",  # a shard is about to be read and tokenised
    "encode.begin",  # its token ids reached an encoder
    "encode.check",  # the texts of the self-check did
    "encode.forward",  # before a forward pass
    "encode.before_write",  # a slice is encoded, not written
    "shard.flushed",  # fragments of one table are written, not yet durable
    "shard.durable",  # all of them are durable and were read back
    "encode.before_record",  # no completion record yet
    "create.before_link",  # its content is durable under a temporary name
    "create.after_link",  # it is there; its folder is not durable yet
    "encode.after_record",  # it is durable
)
DRIVER_POINTS = (
    "generation.folder",  # a new generation has its folder, no manifest
    "generation.started",  # and its manifest
    "build.encoded",  # every shard that could be done is
    "build.before_commit",
    "commit.unsynced",  # one table is committed, its manifest not durable yet
    "commit.table",  # and durable; the next table is not committed
    "build.after_commit",
    "build.checked",  # the checks passed
    "compact.unsynced",  # a table is compacted, its manifest not durable yet
    "build.compacted",  # and durable, reread and compared
    "search.array",
    "build.indexed",  # the dense index is there, where one is built
    "build.swept",  # orphan files are gone
    "replace.before_rename",  # a manifest or CURRENT.json is durable under a temporary name
    "replace.after_rename",  # it is in place; its folder is not durable yet
    "build.sealed",  # the manifest says that it is finished
    "build.before_publish",  # its guard let it pass
    # the old generation knows that it is replaced; CURRENT.json still names it
    "publish.superseded",
    "build.after_publish",
)
RACE_POINTS = (
    "discard.before",  # another attempt at the shard was first; this one's files are still there
    "reuse.read",  # vectors of an earlier generation are about to be read, to be used again
    "prune.renamed",  # a pruned generation has its last name and is not deleted yet
)
POINTS = ACTOR_POINTS + DRIVER_POINTS + RACE_POINTS

PAUSE_S = 0.5

_armed: tuple[Failpoint, ...] = ()
_reached: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class Failpoint:
    """At `name` (and only for `shard`, where one is given) do `action`: kill, hang, pause, error or
    stop.

    `token`: a path; the fault happens only for the process that creates it, so once. Empty: every
    time. `skip`: pass the point this many times first, counted in each process.
    """

    name: str
    action: str = "kill"
    shard: str = ""
    token: str = ""
    skip: int = 0

    def __post_init__(self) -> None:
        if self.name not in POINTS:
            raise ValueError(f"no failpoint is called {self.name}")


def arm(points: tuple[Failpoint, ...]) -> None:
    """Make these the points of this process."""
    global _armed
    _armed = points
    _reached.clear()


@contextlib.contextmanager
def armed(points: tuple[Failpoint, ...]) -> Iterator[None]:
    """`arm` for the length of a block."""
    arm(points)
    try:
        yield
    finally:
        arm(())


def reach(name: str, shard: str = "") -> None:
    """Say that a named point is reached."""
    for point in _armed:
        if point.name == name and point.shard in ("", shard) and _fires(point):
            _act(point)


def _act(point: Failpoint) -> None:
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "hang":
        time.sleep(3600)
    elif point.action == "pause":
        time.sleep(PAUSE_S)
    elif point.action == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise StorageError(f"injected at {point.name}")


def _fires(point: Failpoint) -> bool:
    _reached[point.name] += 1
    if _reached[point.name] <= point.skip:
        return False
    if not point.token:
        return True
    try:
        os.close(os.open(point.token, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
