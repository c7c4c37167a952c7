"""The report of a build as files: JSON, and an SVG of speed, stages and token lengths."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from danbooru_index.config import BASELINE_HARDWARE, BASELINE_TAGS_PER_SECOND, HISTOGRAM_EDGES
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.storage.base import Storage


def save_report(report: BuildReport, folder: Storage) -> None:
    """Write `report.json` and `report.svg` beside the generation's tables."""
    report.picture = str(folder / "report.svg")
    picture = io.BytesIO()
    draw_report(report, picture, "svg")
    (folder / "report.svg").replace(picture.getvalue())
    (folder / "report.json").replace(
        (json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n").encode()
    )


def draw_report(report: BuildReport, out: Path | io.BytesIO, kind: str) -> None:
    """The run as SVG: tags/s over time with the baseline, time by stage, token lengths."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": report.generation, "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        rates, stages, lengths = figure.subplot_mosaic(
            [["rate", "rate"], ["stages", "lengths"]]
        ).values()
        _draw_rates(report, rates)
        _draw_stages(report, stages)
        _draw_lengths(report, lengths)
        figure.suptitle(
            f"{report.records:,} records, {report.model} ({report.precision}) on {report.device}\n"
            f"generation {report.generation}",
            fontsize=10,
        )
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _draw_rates(report: BuildReport, axes: Any) -> None:
    points = report.timeline
    steps = [(t1, (n1 - n0) / (t1 - t0)) for (t0, n0), (t1, n1) in pairwise(points) if t1 > t0]
    if steps:
        axes.step(
            [t for t, _ in steps],
            [rate for _, rate in steps],
            where="pre",
            color="#1f77b4",
            label="this run",
        )
    axes.axhline(
        BASELINE_TAGS_PER_SECOND,
        color="#d62728",
        linestyle="--",
        label=(
            f"published baseline, {BASELINE_TAGS_PER_SECOND} tags/s (BGE-M3 fp16,"
            f" {BASELINE_HARDWARE})"
        ),
    )
    axes.set(
        xlabel="seconds since the command began",
        ylabel="tags/s",
        ylim=(0, None),
        title="Throughput",
    )
    axes.legend(loc="best", fontsize=8)


def _draw_stages(report: BuildReport, axes: Any) -> None:
    seconds = report.seconds
    bars = {
        "start-up": seconds.startup,
        "read, tokenise *": report.stages["read"],
        "encode *": report.stages["encode"],
        "write *": report.stages["write"],
        "commit": seconds.commit,
        "compaction": seconds.compact,
        "index": seconds.index,
        "checks": seconds.verify,
    }
    drawn = axes.barh(list(bars), list(bars.values()), color="#2ca02c")
    axes.bar_label(drawn, fmt="%.1f s", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="seconds (* summed over actors, overlapping)", title="Time by stage")


def _draw_lengths(report: BuildReport, axes: Any) -> None:
    counts = report.histogram or [0] * len(HISTOGRAM_EDGES)
    last = max((place for place, count in enumerate(counts) if count), default=0)
    labels = [str(edge - 1) for edge in HISTOGRAM_EDGES[: last + 1]]
    axes.bar(labels, counts[: last + 1], color="#9467bd")
    axes.set(xlabel="tokens per text, up to", ylabel="texts", title="Token lengths")
    axes.tick_params(axis="x", labelrotation=45)
