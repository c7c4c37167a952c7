"""What a person sees while a build runs: one tqdm bar on a terminal, a plain line every 10 s elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from danbooru_index.config import BASELINE_TAGS_PER_SECOND

LINE_EVERY_S = 10.0
POINTS = 400


class StepProgress:
    """Counts steps of a long task: one tqdm bar on a terminal, a plain line every 10 s elsewhere."""

    def __init__(self, name: str, unit: str, total: int) -> None:
        from tqdm import tqdm

        self.total = total
        self._name, self._unit = name, unit
        self._done, self._told = 0, time.monotonic()
        self._bar = tqdm(desc=name, unit=unit, total=total or None, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def add(self, count: int) -> None:
        """`count` more are done."""
        self.show(self._done + count)

    def show(self, done: int, note: str = "") -> None:
        """So many are done by now; `note`: how it goes."""
        self._bar.total = self.total or None
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._done)
        self._done = done
        if self._bar.disable and time.monotonic() - self._told >= LINE_EVERY_S:
            self._told = time.monotonic()
            of = f" of {self.total:,} {self._unit}s" if self.total else f" {self._unit}s"
            print(f"{self._name}: {done:,}{of}" + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()


class Progress:
    """Counts records of this run; also keeps the timeline for the report's picture."""

    def __init__(self, total: int, started: float, stream: TextIO | None = None) -> None:
        from tqdm import tqdm

        self._stream = stream or sys.stderr
        self._total = total
        self._started = started
        self._begun: float | None = None
        self._told = time.monotonic()
        self._last = 0
        self.timeline: list[tuple[float, int]] = []
        self._bar = tqdm(
            total=total,
            unit="tag",
            desc="encoding",
            file=self._stream,
            disable=not self._stream.isatty(),
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def show(self, records: int) -> None:
        """`records` of this run are encoded by now (never fewer than said before)."""
        now = time.monotonic()
        records = max(self._last, min(records, self._total))
        if records and self._begun is None:
            self._begun = now
        self._remember(now - self._started, records)
        rate = records / (now - self._begun) if self._begun and now > self._begun else 0.0
        if rate:
            self._bar.set_postfix_str(f"{rate / BASELINE_TAGS_PER_SECOND:.2f}x baseline", refresh=False)
        self._bar.update(records - self._last)
        self._last = records
        if self._bar.disable and now - self._told >= LINE_EVERY_S:
            self._told = now
            self._line(records, rate)

    def close(self) -> None:
        self._bar.close()

    def _line(self, records: int, rate: float) -> None:
        line = f"{self._total:,} records to encode: loading the model"
        if rate:
            line = (
                f"{records:,} of {self._total:,} records ({records / self._total:.0%}), {rate:,.1f} tags/s, "
                f"{(self._total - records) / rate:,.0f} s left, {rate / BASELINE_TAGS_PER_SECOND:.2f}x baseline"
            )
        print(line, file=self._stream, flush=True)

    def _remember(self, at: float, records: int) -> None:
        """Keep at most `POINTS` points, ever further apart."""
        if not self.timeline and records:
            self.timeline.append((max(0.0, at - 1.0), 0))
        if records != self._last or not self.timeline:
            self.timeline.append((round(at, 3), records))
        if len(self.timeline) > POINTS:
            self.timeline = [self.timeline[0], *self.timeline[2:-1:2], self.timeline[-1]]


class Board:
    """A small actor that knows how far each shard is, so that the bar moves within a shard. It lives in a module that imports
    next to nothing, since its process is one of those that start when a build does."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._done: set[str] = set()

    def report(self, shard: str, rows: int) -> None:
        """`rows` of a shard are encoded; a retried shard counts once."""
        if shard not in self._done:
            self._rows[shard] = max(rows, self._rows.get(shard, 0))

    def underway(self, done: list[str]) -> int:
        """The rows encoded of shards that are not done; `done`: those that are, since the last call."""
        self._done.update(done)
        for shard in done:
            self._rows.pop(shard, None)
        return sum(self._rows.values())
