"""Is a dump whole, or is somebody still writing it?"""

from __future__ import annotations

import time
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.sources import list_inputs

FRESH_S = 60.0  # a file that changed so lately is looked at again
LOOK_AGAIN_S = 2.0


def settled_since(inputs: tuple[str, ...], leaving_out: Path | None = None) -> float:
    """When the newest of the files behind these inputs was last changed, in seconds since the
    epoch. Raises `InputError` for one that is not there, is empty, or is still growing.
    """
    files = list_inputs(inputs, leaving_out)
    before = {path: _seen(path) for path in files}
    for path, (size, _) in before.items():
        if not size:
            raise InputError(f"{path}: empty (0 bytes); nothing was begun")
    newest = max(changed for _, changed in before.values())
    if time.time() - newest < FRESH_S:
        time.sleep(LOOK_AGAIN_S)
        for path in files:
            if _seen(path) != before[path]:
                raise InputError(
                    f"{path}: still being written (its size changed within {LOOK_AGAIN_S:.0f} s);"
                    " nothing was begun; start again when it is whole, or write it under another"
                    " name and rename it"
                )
    return newest


def _seen(path: Path) -> tuple[int, float]:
    """Bytes and time of change."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return status.st_size, status.st_mtime
