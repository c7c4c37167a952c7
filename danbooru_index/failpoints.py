"""Named points of the protocol where a test may inject a fault. They cost nothing when off, and no option sets them.

encode.begin  encode.check  encode.forward  encode.before_write  encode.before_record  encode.after_record
                                                                                (in the encoding actor)
build.before_commit  build.after_commit  build.before_publish  build.after_publish  (in the driver)
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from danbooru_index.errors import StorageError


@dataclass(frozen=True, slots=True)
class Failpoint:
    """At `name` (and only for `shard`, where one is given) do `action`: kill, hang or error.

    `token`: a path; the fault happens only for the process that creates it, so once. Empty: every time.
    """

    name: str
    action: str = "kill"
    shard: str = ""
    token: str = ""


def reach(failpoints: tuple[Failpoint, ...], name: str, shard: str = "") -> None:
    """Say that a named point is reached."""
    for failpoint in failpoints:
        if failpoint.name == name and failpoint.shard in ("", shard) and _fires(failpoint):
            if failpoint.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif failpoint.action == "hang":
                time.sleep(3600)
            else:
                raise StorageError(f"injected at {name}")


def _fires(failpoint: Failpoint) -> bool:
    if not failpoint.token:
        return True
    try:
        os.close(os.open(failpoint.token, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
