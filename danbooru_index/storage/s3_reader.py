"""An object as a file that is read in ranges, all of one version of it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

from danbooru_index.storage.s3_client import as_os_errors, bucket_store, obstore_module

BUFFER = 8 << 20  # bytes a request: a Parquet shard takes one or two


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """What the store says of an object: its bytes, and the e-tag of this content."""

    size: int
    e_tag: str

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and a number of the e-tag: what size and time of change are for a file."""
        return self.size, int.from_bytes(hashlib.sha256(self.e_tag.encode()).digest()[:7], "big")


class ObjectReader(io.RawIOBase):
    """Ranges of an object by `if-match`: one that is replaced meanwhile is an `OSError`."""

    def __init__(self, bucket: str, key: str) -> None:
        self._bucket, self._key, self._at = bucket, key, 0
        with as_os_errors(f"s3://{bucket}/{key}"):
            found = obstore_module().head(bucket_store(bucket), key)
        self.version = ObjectVersion(int(found["size"]), str(found["e_tag"]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.version.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self.version.size)
        if stop <= self._at:
            return 0
        options = {"range": (self._at, stop), "if_match": self.version.e_tag}
        with as_os_errors(f"s3://{self._bucket}/{self._key}"):
            found = obstore_module().get(bucket_store(self._bucket), self._key, options=options)
            content = memoryview(found.bytes())
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def open_object(bucket: str, key: str) -> tuple[io.BufferedReader, ObjectVersion]:
    """An object, buffered, and which version of it this is."""
    raw = ObjectReader(bucket, key)
    return io.BufferedReader(raw, BUFFER), raw.version
