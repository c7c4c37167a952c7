"""What a person sees of a run: a tqdm bar on a terminal, else a plain line every 10 s.

Bars and moving lines are drawn on the stream they are given (stderr). Plain lines are logged, and
shown where a program asks for it, as the command line does by `log_to_stderr`.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from typing import Any, Self, TextIO

from danbooru_index.config import BASELINE_TAGS_PER_SECOND
from danbooru_index.log_lines import bars_elsewhere, event, moving, redraw

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
REDRAW_S = 0.2
TIMELINE_POINTS = 400


class StepProgress:
    """Counts steps of a long task: a tqdm bar on a terminal, else a plain line every 10 s."""

    def __init__(self, name: str, unit: str, total: int) -> None:
        from tqdm import tqdm

        self.total = total
        self._name, self._unit = name, unit
        self._done, self._told = 0, time.monotonic()
        self._bar = tqdm(
            desc=name,
            unit=unit,
            total=total or None,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

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
            log.info(f"{self._name}: {done:,}{of}" + (f", {note}" if note else ""))

    def close(self) -> None:
        self._bar.close()


class StartUp:
    """What a command does before its first record is done: one moving line on a terminal, a line
    every 10 s elsewhere.

    A step lasts until the next begins, or all end with `close`.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._moving = self._stream.isatty()
        self._began = time.monotonic()
        self._steps: list[tuple[str, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="start-up", daemon=True)
        self._thread.start()

    def step(self, name: str) -> None:
        """Begin another step."""
        self._steps.append((name, time.monotonic()))

    def close(self) -> None:
        """All is ready, or has failed; the moving line goes."""
        if self._ended.is_set():
            return
        self._ended.set()
        with moving:
            if self._moving:
                redraw(self._stream, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seconds(self) -> dict[str, float]:
        """What each step has taken so far."""
        return {name: round(seconds, 1) for name, seconds in self._timed()}

    def _timed(self) -> list[tuple[str, float]]:
        """Each step with its seconds, the current one last."""
        steps = list(self._steps)
        ends = [*(at for _, at in steps[1:]), time.monotonic()]
        return [(name, end - at) for (name, at), end in zip(steps, ends, strict=False)]

    def line(self) -> str:
        """How long it has taken so far: finished steps with their seconds, then the current one."""
        steps = self._timed()
        done = [f"{name} {seconds:.0f} s" for name, seconds in steps[:-1] if seconds >= 0.5]
        return ", ".join(
            [
                f"start-up {time.monotonic() - self._began:.0f} s",
                *done,
                *(f"{name} ..." for name, _ in steps[-1:]),
            ]
        )

    def _tell(self) -> None:
        while not self._ended.wait(REDRAW_S if self._moving else LINE_EVERY_S):
            if not self._moving:
                log.info(self.line(), extra=event("start_up", steps=self.seconds()))
                continue
            with moving:
                if not self._ended.is_set() and not bars_elsewhere.is_set():
                    redraw(self._stream, self.line()[: shutil.get_terminal_size().columns - 1])


class Progress:
    """Counts records of this run, once the first is done (till then `start_up` is shown); also
    keeps the timeline for the report's picture. `reuses`: some records have their vectors from an
    earlier generation, so that what is counted is no speed of encoding.
    """

    def __init__(
        self,
        total: int,
        started: float,
        stream: TextIO | None = None,
        start_up: StartUp | None = None,
        reuses: bool = False,
    ) -> None:
        self._reuses = reuses
        self._stream = stream or sys.stderr
        self._start_up = start_up
        self._total = total
        self._started = started
        self._begun: float | None = None
        self._told = time.monotonic()
        self._last = 0
        self.timeline: list[tuple[float, int]] = []
        self._bar: Any = None

    def show(self, records: int) -> None:
        """`records` of this run are encoded by now (never fewer than said before)."""
        now = time.monotonic()
        records = max(self._last, min(records, self._total))
        if records and self._begun is None:
            self._begin(now)
        self._remember(now - self._started, records)
        rate = records / (now - self._begun) if self._begun and now > self._begun else 0.0
        if self._bar is not None:
            self._bar.set_postfix_str(self._compared(rate), refresh=False)
            self._bar.update(records - self._last)
            if self._bar.disable and rate and now - self._told >= LINE_EVERY_S:
                self._told = now
                self._line(records, rate)
        self._last = records

    def close(self) -> None:
        for shown in (self._start_up, self._bar):
            if shown is not None:
                shown.close()

    def _begin(self, now: float) -> None:
        """The first records are done: from now on a bar, or lines, tell how many."""
        from tqdm import tqdm

        if self._start_up is not None:
            self._start_up.close()
        self._begun = self._told = now
        self._bar = tqdm(
            total=self._total,
            unit="tag",
            desc="reusing and encoding" if self._reuses else "encoding",
            file=self._stream,
            disable=not self._stream.isatty(),
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def _compared(self, rate: float) -> str:
        """A rate beside the baseline, which encoded every record."""
        return "" if self._reuses else f"{rate / BASELINE_TAGS_PER_SECOND:.2f}x baseline"

    def _line(self, records: int, rate: float) -> None:
        unit = "records/s, reused ones among them" if self._reuses else "tags/s"
        parts = [
            f"{records:,} of {self._total:,} records ({records / self._total:.0%})",
            f"{rate:,.1f} {unit}",
            f"{(self._total - records) / rate:,.0f} s left",
            self._compared(rate),
        ]
        line = ", ".join(part for part in parts if part)
        log.info(
            line,
            extra=event(
                "progress",
                records=records,
                of=self._total,
                **{f"{'records' if self._reuses else 'tags'}_per_second": round(rate, 1)},
                seconds_left=round((self._total - records) / rate),
            ),
        )

    def _remember(self, at: float, records: int) -> None:
        """Keep at most `TIMELINE_POINTS` points, ever further apart."""
        if not self.timeline and records:
            self.timeline.append((max(0.0, at - 1.0), 0))
        if records != self._last or not self.timeline:
            self.timeline.append((round(at, 3), records))
        if len(self.timeline) > TIMELINE_POINTS:
            self.timeline = [self.timeline[0], *self.timeline[2:-1:2], self.timeline[-1]]
