"""Arrays as bytes in a column of Arrow: token batches, embeddings."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa

from danbooru_index.embeddings import Embeddings


def pack_embeddings(embeddings: Embeddings) -> bytes:
    """All arrays of some embeddings, as one NumPy archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(embeddings, name) for name in embeddings.__slots__})
    return buffer.getvalue()


def unpack_embeddings(payload: bytes) -> Embeddings:
    """What `pack_embeddings` packed."""
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return Embeddings(**{name: arrays[name] for name in arrays.files})


def to_stream(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def flat(value: pa.Scalar) -> np.ndarray[Any, Any]:
    """The values of one list in a column, without a copy where Arrow allows it."""
    return np.asarray(value.values.to_numpy(zero_copy_only=False))
