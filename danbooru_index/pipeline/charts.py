"""Charts of a build as SVG text: throughput, what each actor did when, token lengths.

Colours are CSS classes (`STYLE`), so that a page shows them light or dark. Text is text, sizes are
those of a phone's screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, LEFT, RIGHT, UPPER, BOTTOM = 480, 52, 12, 14, 34  # of a chart, and its margins
STRETCHES = 120  # of a curve
NICE = (1, 2, 2.5, 5, 10)

STYLE = """
svg text { font: 12px system-ui, sans-serif; fill: var(--ink, #222) }
svg .faint { fill: var(--faint, #666) }
svg .axis { stroke: var(--line, #bbb); stroke-width: 1 }
svg .curve { fill: none; stroke: var(--blue, #1769aa); stroke-width: 2 }
svg .base { stroke: var(--red, #c62828); stroke-width: 1.5; stroke-dasharray: 5 4 }
svg .blue { fill: var(--blue, #1769aa) }
svg .green { fill: var(--green, #2e7d32) }
svg .grey { fill: var(--line, #bbb) }
"""


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of a timeline: (begin, end, words, class) of each piece of work, in seconds."""

    name: str
    pieces: list[tuple[float, float, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Frame:
    """A chart's axes: values from 0 to `x` and 0 to `y`, in a drawing `height` high."""

    x: float
    y: float
    height: int

    def at_x(self, value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / self.x, 1)

    def at_y(self, value: float) -> float:
        return round(self.height - BOTTOM - (self.height - UPPER - BOTTOM) * value / self.y, 1)

    def axes(self, x_label: str, y_label: str = "") -> list[str]:
        """Lines, ticks and labels; no numbers beside the y axis where it has no label."""
        floor = self.height - BOTTOM
        drawn = [
            f'<path class="axis" fill="none" d="M{LEFT} {UPPER}V{floor}H{WIDTH - RIGHT}"/>',
            _label(WIDTH - RIGHT, self.height - 4, x_label, "end", "faint"),
        ]
        for value in _ticks(self.x):
            place = self.at_x(value)
            drawn.append(f'<path class="axis" d="M{place} {floor}v4"/>')
            drawn.append(_label(place, floor + 16, f"{value:,.4g}", "middle"))
        if y_label:
            drawn.append(_label(LEFT + 6, UPPER + 4, y_label, "start", "faint"))
            for value in _ticks(self.y, 4):
                drawn.append(_label(LEFT - 6, self.at_y(value) + 4, f"{value:,.4g}", "end"))
        return drawn


def throughput(timeline: Sequence[tuple[float, int]], begin: float, baseline: float) -> str:
    """Records a second from the first token on, beside a baseline. `timeline`: (seconds since the
    command began, records so far); `begin`: when the first token was encoded.
    """
    rates = _rates([(max(0.0, at - begin), count) for at, count in timeline])
    if not rates:
        return ""
    last, most = rates[-1][1], max([baseline, *(rate for _, _, rate in rates)])
    frame = _Frame(last or 1.0, most * 1.1, 220)
    steps = "".join(
        f"{'M' if not place else 'L'}{frame.at_x(start)} {frame.at_y(rate)}H{frame.at_x(stop)}"
        for place, (start, stop, rate) in enumerate(rates)
    )
    line = frame.at_y(baseline)
    return _drawing(
        220,
        "Records a second over time",
        [
            *frame.axes("seconds since the first token", "records/s"),
            f'<path class="base" d="M{LEFT} {line}H{WIDTH - RIGHT}"/>',
            f'<path class="curve" d="{steps}"/>',
            _label(WIDTH - RIGHT, line - 5, f"published baseline, {baseline:g}/s", "end", "faint"),
        ],
    )


def _rates(points: list[tuple[float, int]]) -> list[tuple[float, float, float]]:
    """(begin, end, records a second) of at most `STRETCHES` stretches of equal length."""
    if not points or points[-1][0] <= 0 or not points[-1][1]:
        return []
    end = points[-1][0]
    known = [(0.0, 0), *points]
    bounds = [end * n / min(STRETCHES, len(points)) for n in range(min(STRETCHES, len(points)) + 1)]
    counts, place = [], 0
    for bound in bounds:
        while place + 1 < len(known) and known[place + 1][0] <= bound:
            place += 1
        (t0, n0) = known[place]
        (t1, n1) = known[min(place + 1, len(known) - 1)]
        share = (bound - t0) / (t1 - t0) if t1 > t0 else 0.0
        counts.append(n0 + (n1 - n0) * share)
    return [
        (start, stop, (after - before) / (stop - start))
        for (start, stop), (before, after) in zip(pairwise(bounds), pairwise(counts), strict=True)
    ]


def timeline(lanes: Sequence[Lane], seconds: float) -> str:
    """What each did when: a row a lane, from 0 to `seconds` since the command began."""
    row = 34
    height = UPPER + row * len(lanes) + BOTTOM
    frame = _Frame(max(seconds, 0.1), 1.0, height)
    drawn = frame.axes("seconds since the command began")
    for number, lane in enumerate(lanes):
        top = UPPER + row * number
        drawn.append(_label(LEFT + 4, top + 12, lane.name, "start", "faint"))
        for begin, end, words, kind in lane.pieces:
            left, width = frame.at_x(begin), max(1.0, frame.at_x(end) - frame.at_x(begin))
            drawn.append(
                f'<rect class="{kind}" x="{left}" y="{top + 16}" width="{width:.1f}" height="13">'
                f"<title>{escape(words)}: {begin:.1f} to {end:.1f} s</title></rect>"
            )
    return _drawing(height, "What each actor did, and when", drawn)


def lengths(counts: Sequence[int], edges: Sequence[int]) -> str:
    """How many texts have how many tokens. `counts[n]`: texts of fewer than `edges[n]` tokens, and
    not fewer than the edge before. Bars are as wide as what they count, so that areas compare.
    """
    total = sum(counts)
    if not total:
        return ""
    # the longest thousandth would press all others together: it is told, not drawn
    shown, seen = 0, 0
    while seen < total * 0.999:
        seen += counts[shown]
        shown += 1
    starts = [0, *edges][:shown]
    density = [
        count / (stop - start) for count, start, stop in zip(counts, starts, edges, strict=False)
    ][:shown]
    frame = _Frame(float(edges[shown - 1]), max(density) * 1.1 or 1.0, 220)
    bars = [
        f'<rect class="blue" x="{frame.at_x(start)}" y="{frame.at_y(value)}"'
        f' width="{max(1.0, frame.at_x(stop) - frame.at_x(start) - 1):.1f}"'
        f' height="{frame.at_y(0) - frame.at_y(value):.1f}">'
        f"<title>{start} to {stop - 1} tokens: {count:,} texts</title></rect>"
        for start, stop, value, count in zip(starts, edges, density, counts, strict=False)
    ]
    longer = total - sum(counts[:shown])
    more = [_label(WIDTH - RIGHT, UPPER + 4, f"{longer:,} longer texts", "end", "faint")]
    drawn = [*frame.axes("tokens of a text", "texts for each length"), *bars]
    return _drawing(220, "Token lengths", drawn + (more if longer else []))


def stacked(drawings: Sequence[str]) -> str:
    """Several charts as one SVG file of its own, one under the other."""
    found = [one for one in drawings if one]
    heights = [int(one.partition(' height="')[2].partition('"')[0]) for one in found]
    placed, top = [], 0
    for one, height in zip(found, heights, strict=True):
        placed.append(one.replace("<svg ", f'<svg y="{top}" ', 1))
        top += height
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{2 * WIDTH}">'
        f"<style>{STYLE}</style>"
        f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>{"".join(placed)}</svg>\n'
    )


def _drawing(height: int, title: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img"'
        f' aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _label(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{named}>{escape(words)}</text>'


def _ticks(largest: float, about: int = 6) -> list[float]:
    """Round values from 0 up to `largest`."""
    if largest <= 0:
        return [0.0]
    unit = 10 ** math.floor(math.log10(largest / about))
    step = next(unit * nice for nice in NICE if unit * nice * about >= largest)
    return [step * n for n in range(math.floor(largest / step + 1e-9) + 1)]
