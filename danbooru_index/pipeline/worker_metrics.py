"""Ray metrics of the encoding actors: records, tokens and seconds by stage, for whoever scrapes the cluster."""

from __future__ import annotations


class WorkerMetrics:
    """Ray metrics: records, tokens and seconds by stage, for whoever scrapes the cluster."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter as RayCounter

        self._records = RayCounter("danbooru_index_records", description="Records written to all three tables")
        self._tokens = RayCounter("danbooru_index_tokens", description="Tokens encoded")
        self._seconds = RayCounter("danbooru_index_seconds", description="Seconds by stage", tag_keys=("stage",))

    def add(self, records: int, tokens: int, clock: dict[str, float]) -> None:
        if records:
            self._records.inc(records)
        if tokens:
            self._tokens.inc(tokens)
        for stage in ("read", "encode", "write"):
            if clock[stage] > 0:
                self._seconds.inc(clock[stage], tags={"stage": stage})
