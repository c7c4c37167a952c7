"""How far each shard is, told by the encoding actors, so that the bar moves within a shard."""

from __future__ import annotations


class ProgressActor:
    """A small actor that knows how far each shard is, so that the bar moves within a shard. It
    lives in a module that imports next to nothing, since its process is one of those that start
    when a build does.
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._done: set[str] = set()

    def report(self, shard: str, rows: int) -> None:
        """`rows` of a shard are encoded; a retried shard counts once."""
        if shard not in self._done:
            self._rows[shard] = max(rows, self._rows.get(shard, 0))

    def underway(self, done: list[str]) -> int:
        """The rows encoded of shards that are not done; `done`: newly done since the last call."""
        self._done.update(done)
        for shard in done:
            self._rows.pop(shard, None)
        return sum(self._rows.values())
