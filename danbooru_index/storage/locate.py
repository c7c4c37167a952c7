"""Where an index is: the Storage that a user's words mean."""

from __future__ import annotations

import re
from pathlib import Path

from danbooru_index.errors import UsageError
from danbooru_index.storage.base import Storage
from danbooru_index.storage.local import LocalStorage
from danbooru_index.storage.s3 import S3Storage


def locate(place: str | Path | Storage) -> Storage:
    """A folder of a file system, or `s3://bucket/prefix`; raise `UsageError` for another store."""
    if not isinstance(place, str | Path):
        return place
    text = str(place)
    if isinstance(place, str) and "://" in text:
        if not text.startswith("s3://"):
            raise UsageError(
                f"{text}: of object stores only s3:// is known to keep its promises here"
            )
        return S3Storage.parse(text)
    if isinstance(place, str) and re.match("[a-z0-9]+:/", text):
        raise UsageError(f"{text}: neither a folder nor of the form s3://bucket/prefix")
    path = Path(place)
    # a:b is an object store to Lance, /c/a:b is not
    return LocalStorage(path.absolute() if ":" in str(path) else path)
