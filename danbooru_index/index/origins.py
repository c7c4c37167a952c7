"""When the vectors of a shard's rows were encoded: by this build, or by an earlier one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from danbooru_index.index.completion import CompletionRecord

Times = npt.NDArray[np.int64]  # seconds since the epoch


def encoding_times(record: CompletionRecord) -> Times:
    """When each row of a shard was encoded, [rows], in seconds since the epoch."""
    if not record.origins:
        return np.full(record.rows, int(record.stats.started), np.int64)
    times, counts = np.array(record.origins, np.int64).T
    return np.repeat(times, counts)


def to_origins(times: Times) -> list[list[int]]:
    """What `encoding_times` undoes: (time, rows) of each run of rows that were encoded together."""
    starts = np.flatnonzero(np.diff(times, prepend=-1))
    counts = np.diff(starts, append=len(times))
    return np.stack([times[starts], counts], axis=1).tolist() if len(times) else []
