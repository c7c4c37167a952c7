"""Does a node see what the driver sees? Its index, its shards, its model."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from danbooru_index.ingest.parquet import open_input
from danbooru_index.ingest.shards import Shard, is_same
from danbooru_index.storage.base import Storage

LOOKED_AT = 8  # shards, spread over all
NO_FILE = "no such file there"
SHARE = "put it where every node sees the same: on a shared file system, or s3://"


@dataclass(frozen=True, slots=True)
class Sight:
    """What the driver sees: a file that it has just written into the index, and some shards."""

    token: Storage
    shards: tuple[Shard, ...]

    def problem(self) -> str:
        """What this process does not see so, in a line; empty where it sees all."""
        try:
            return self._of_index() or next(filter(None, map(_problem_of, self.shards)), "")
        except OSError as error:
            return f"{error.filename or self.token}: cannot be read ({error.strerror})"

    def blindness(self) -> str:
        """`problem` for an actor that starts while others work, when a shard may have changed: only
        where the index, or all of these shards, are not there. Reads none of them.
        """
        try:
            problem = self._of_index()
            if problem or not self.shards or not all(map(_is_absent, self.shards)):
                return problem
        except OSError:
            return ""  # not seen now: each shard will say so
        return f"{self.shards[0].path}: {NO_FILE}; {SHARE}"

    def _of_index(self) -> str:
        generation = self.token.parent.parent
        try:
            self.token.size()
        except FileNotFoundError:
            what = "another folder" if generation.is_folder() else "no such folder"
            return f"{generation}: {what} there; {SHARE}"
        return ""


def show(attempts: Storage, shards: Sequence[Shard]) -> Sight:
    """Write the file that others are to see; it goes with the folder `attempts`."""
    token = attempts / f"seen-{uuid.uuid4().hex}"
    attempts.make_folder()
    token.create(b"", durable=False)
    return Sight(token, tuple(shards[:: max(1, len(shards) // LOOKED_AT)][:LOOKED_AT]))


def _is_absent(shard: Shard) -> bool:
    try:
        with open_input(shard.path):
            return False
    except FileNotFoundError:
        return True


def _problem_of(shard: Shard) -> str:
    try:
        with open_input(shard.path) as opened:
            return "" if is_same(shard, opened) else f"{shard.path}: another file there; {SHARE}"
    except FileNotFoundError:
        return f"{shard.path}: {NO_FILE}; {SHARE}"
