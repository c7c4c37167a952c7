"""What an encoder tells Ray's metrics."""

from __future__ import annotations

from danbooru_index.index.completion import CompletionRecord


class WorkerMetrics:
    """Counters `danbooru_index_records`, `_tokens`, and `_seconds` by stage."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._records = Counter(
            "danbooru_index_records", description="Records written to all three tables"
        )
        self._tokens = Counter("danbooru_index_tokens", description="Tokens encoded")
        self._seconds = Counter(
            "danbooru_index_seconds", description="Seconds by stage", tag_keys=("stage",)
        )

    def add(self, record: CompletionRecord) -> None:
        """Count a shard that is done. A counter takes no zero."""
        stats = record.stats
        if record.rows:
            self._records.inc(record.rows)
        if stats.tokens:
            self._tokens.inc(stats.tokens)
        for stage, seconds in (
            ("read", stats.read),
            ("encode", stats.encode),
            ("write", stats.write),
        ):
            if seconds > 0:
                self._seconds.inc(seconds, tags={"stage": stage})
