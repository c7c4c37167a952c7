"""The report of an evaluation: every measure of every system, over all queries and by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from danbooru_index.evaluation.metrics import MEASURES

TITLES = {
    "R@1": "Recall@1",
    "R@10": "Recall@10",
    "R@100": "Recall@100",
    "nDCG@10": "nDCG@10",
    "AP@10": "mAP@10",
    "RR": "MRR",
}


@dataclass(slots=True)
class System:
    """What one way of searching reached: every measure over all queries and by kind, each with its
    95% interval.

    `better`, `worse`: the measures in which it differs from its counterpart beyond chance (paired
    bootstrap). `latency_ms`: of one query at a time, median and 95th percentile, if it was timed.
    """

    name: str
    all: dict[str, list[float]] = field(default_factory=dict)
    kinds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    counterpart: str = ""
    better: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)
    latency_ms: list[float] | None = None


@dataclass(slots=True)
class EvaluationReport:
    """The table; every measure is [mean, low, high]."""

    index: str
    model: str
    model_id: str
    records: int
    queries: dict[str, int]
    unknown: int
    unknown_tags: int = 0
    systems: list[System] = field(default_factory=list)
    picture: str | None = None
    encoding_ms: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "systems"}
        return plain | {"systems": [{n: getattr(s, n) for n in s.__slots__} for s in self.systems]}

    def to_text(self) -> str:
        total = sum(self.queries.values())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.queries.items())
        lines = [
            f"{self.index}: {self.records:,} records, {self.model} (id {self.model_id[:12]});"
            f" {total:,} queries ({kinds})"
        ]
        if self.unknown:
            lines.append(
                f"  {self.unknown:,} queries name no tag of this index: they count as not found"
            )
        if self.unknown_tags:
            lines.append(
                f"  {self.unknown_tags:,} of the tags that queries name are none of this index:"
                " recall stays below 1"
            )
        width = max(len(system.name) for system in self.systems) + 2
        for kind in ("all", *self.queries):
            lines.append(f"{kind:<{width}}" + "".join(f"{TITLES[m]:>22}" for m in MEASURES))
            for system in self.systems:
                values = system.all if kind == "all" else system.kinds[kind]
                cells = [
                    f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for v in (values[m] for m in MEASURES)
                ]
                marks = [_mark(system, m) if kind == "all" else "" for m in MEASURES]
                lines.append(
                    f"{system.name:<{width}}"
                    + "".join(f"{c + k:>22}" for c, k in zip(cells, marks, strict=True))
                )
        if any(system.counterpart for system in self.systems):
            lines.append(
                "  + better, - worse than its counterpart (the same mode of the other index; the"
                " whole hybrid), beyond chance (paired bootstrap, 95%)"
            )
        return "\n".join(lines + self._latencies())

    def _latencies(self) -> list[str]:
        timed = {s.name: s.latency_ms for s in self.systems if s.latency_ms}
        told = ", ".join(f"{name} {ms[0]:.1f} / {ms[1]:.1f}" for name, ms in timed.items())
        if not timed:
            return []
        encoding = " / ".join(f"{ms:.1f}" for ms in self.encoding_ms)
        return [
            f"milliseconds a query, median / 95th percentile, one at a time: {told};"
            f" encoding it {encoding}"
        ]


def _mark(system: System, measure: str) -> str:
    return "+" if measure in system.better else "-" if measure in system.worse else ""


def _plain_label(text: str) -> str:
    """A text that matplotlib shows as it is: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def draw_evaluation(report: EvaluationReport, path: Path) -> None:
    """Recall@10 and mAP@10 of every system, by kind, with intervals (SVG or PNG by suffix)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts = {"all": sum(report.queries.values())} | report.queries
    kinds = list(counts)
    with rc_context({"svg.hashsalt": report.model_id, "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        for axes, measure in zip(figure.subplots(2, 1), ("R@10", "AP@10"), strict=True):
            width = 0.8 / len(report.systems)
            for place, system in enumerate(report.systems):
                values = np.array(
                    [
                        (system.all if kind == "all" else system.kinds[kind])[measure]
                        for kind in kinds
                    ]
                )
                at = np.arange(len(kinds)) + (place - (len(report.systems) - 1) / 2) * width
                errors = np.abs(values[:, 1:].T - values[:, 0])
                axes.bar(
                    at, values[:, 0], width, yerr=errors, capsize=2, label=_plain_label(system.name)
                )
            axes.set_xticks(
                np.arange(len(kinds)),
                [_plain_label(f"{k} ({count:,})") for k, count in counts.items()],
            )
            axes.set(ylabel=TITLES[measure], ylim=(0, 1))
            axes.grid(axis="y", alpha=0.3)
        figure.axes[0].legend(fontsize=8, ncols=3)
        title = (
            f"{report.model} over {report.records:,} records; bars: mean, whiskers: 95% bootstrap"
            " interval"
        )
        figure.suptitle(_plain_label(title))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    report.picture = str(path)
