"""Durations as people write them and read them: `90s`, `30m`, `6h`."""

from __future__ import annotations

import math
import re

from danbooru_index.errors import UsageError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def parse_duration(word: str, option: str) -> float:
    """Seconds of a number with a unit; raise `UsageError` for anything else.

    >>> parse_duration("1.5h", "--deadline")
    5400.0
    """
    found = WRITTEN.fullmatch(word.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else math.inf
    if not math.isfinite(seconds):
        raise UsageError(f"{option} takes a number and s, m, h or d, such as 30m; not {word!r}")
    return seconds


def said_duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> said_duration(45), said_duration(1800), said_duration(9000)
    ('45 s', '30 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{round(seconds / 3600, 1):g} h"
