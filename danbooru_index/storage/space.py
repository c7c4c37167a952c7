"""How much room there is."""

from __future__ import annotations

import math
import os

from danbooru_index.storage.s3 import Location, ObjectPath


def free_bytes(path: Location) -> float:
    """Free bytes on the disk that holds `path`; an object store has no end."""
    if isinstance(path, ObjectPath):
        return math.inf
    status = os.statvfs(path)
    return float(status.f_bavail * status.f_frsize)
