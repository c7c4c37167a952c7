"""Ray's one meaningless warning a process, said into a file."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Any

MEANINGLESS = re.compile(
    rb"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store"
)


def spend_warning() -> None:
    """Have Ray say into a file what it says once a process, as an error on stderr, of every pool of Ray Data: that an actor
    may not restart, which means nothing here. Anything else that is said meanwhile goes to stderr after all.

    The actor that it is said of asks for a resource that no node has, and is taken back at once.
    """
    import ray

    if ray.util.client.ray.is_connected():
        return
    saved = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            never = ray.remote(num_cpus=0, resources={"nowhere": 1}, max_restarts=-1)(_Never)
            ray.kill(never.remote(ray.put(0)))
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        said.seek(0)
        for line in said:
            if not MEANINGLESS.search(line):
                os.write(2, line)


class _Never:
    """An actor that is never made."""

    def __init__(self, _: Any) -> None: ...
