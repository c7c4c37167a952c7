"""How much room there is on a disk."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes(path: Path) -> float:
    """Free bytes on the disk that holds `path`, for who asks."""
    status = os.statvfs(path)
    return float(status.f_bavail * status.f_frsize)
