"""What an encoder tells Ray's metrics, which Prometheus reads as `ray_danbooru_index_...`.

The names are documented in jobs/README.md and shown by jobs/grafana.json.
"""

from __future__ import annotations

from danbooru_index.index.completion import CompletionRecord


class WorkerMetrics:
    """Counters of records, tokens, seconds by `stage` and shards by `outcome` (done, failed, again:
    begun again for another encoder); a gauge of the shards in hand.
    """

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        self._records = Counter(
            "danbooru_index_records", description="Records written to all three tables"
        )
        self._tokens = Counter("danbooru_index_tokens", description="Tokens encoded")
        self._seconds = Counter(
            "danbooru_index_seconds", description="Seconds by stage", tag_keys=("stage",)
        )
        self._shards = Counter(
            "danbooru_index_shards", description="Shards by outcome", tag_keys=("outcome",)
        )
        self._in_hand = Gauge(
            "danbooru_index_shards_in_hand", description="Shards that an encoder has in hand"
        )

    def add(self, record: CompletionRecord) -> None:
        """Count a shard that is done. A counter takes no zero."""
        stats = record.stats
        self.shard("done")
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

    def shard(self, outcome: str) -> None:
        """Count a shard: done, failed, or again."""
        self._shards.inc(1, tags={"outcome": outcome})

    def in_hand(self, shards: int) -> None:
        """So many shards are in hand now."""
        self._in_hand.set(shards)
