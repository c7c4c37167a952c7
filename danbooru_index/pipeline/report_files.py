"""The report of a build as files beside its tables: JSON, a picture, and a page."""

from __future__ import annotations

import json

from danbooru_index.config import BASELINE_TAGS_PER_SECOND, HISTOGRAM_EDGES
from danbooru_index.errors import first_line
from danbooru_index.pipeline.charts import Lane, lengths, stacked, throughput, timeline
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.pipeline.report_page import report_page
from danbooru_index.storage.base import Storage

LANES = 24  # actors that are drawn
LANE_NAME = 44  # characters


def save_report(report: BuildReport, folder: Storage) -> None:
    """Write `report.json`, `report.svg` and `report.html`; what was there is replaced. What cannot
    be written is noted in the report.
    """
    report.picture, report.page = str(folder / "report.svg"), str(folder / "report.html")
    try:
        _write(report, folder)
    except Exception as error:  # published already: a page that cannot be written changes nothing
        report.picture = report.page = None
        report.notes.append(f"its report could not be written ({first_line(error)})")


def _write(report: BuildReport, folder: Storage) -> None:
    charts = draw(report)
    (folder / "report.svg").replace(stacked(list(charts.values())).encode())
    (folder / "report.html").replace(report_page(report, charts).encode(errors="replace"))
    (folder / "report.json").replace(
        (json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n").encode()
    )


def draw(report: BuildReport) -> dict[str, str]:
    """The charts as SVG, by title; empty where there is nothing to draw."""
    seconds = report.seconds
    return {
        "Throughput": throughput(report.timeline, seconds.startup, BASELINE_TAGS_PER_SECOND),
        "What happened when": timeline(_lanes(report), seconds.total) if report.work else "",
        "Token lengths": lengths(report.histogram, HISTOGRAM_EDGES),
    }


def _short(name: str) -> str:
    """A name that a lane has room for, its end kept."""
    return name if len(name) <= LANE_NAME else f"{name[:18]}...{name[21 - LANE_NAME :]}"


def _lanes(report: BuildReport) -> list[Lane]:
    """The command's own steps, one after the other, and the shards of each actor."""
    seconds = report.seconds
    steps, at = [("start-up", seconds.startup, "grey")], 0.0
    steps += [("encoding", seconds.encode, "blue"), ("commit", seconds.commit, "green")]
    steps += [("compaction", seconds.compact, "grey"), ("search files", seconds.index, "green")]
    steps.append(("checks", seconds.verify, "grey"))
    command = Lane("the command")
    for words, spent, kind in steps:
        if spent:
            command.pieces.append((at, at + spent, words, kind))
        at += spent
    busy = {one.name.partition("[")[2].rstrip("]"): one.busy_share for one in report.devices}
    actors = [
        Lane(
            f"{_short(name)}: busy {busy.get(name, 0.0):.0%}",
            [(begin, end, "shards in hand", "blue") for begin, end in pieces],
        )
        for name, pieces in report.work.items()
    ]
    more = [Lane(f"and {len(actors) - LANES} more")] if len(actors) > LANES else []
    return [command, *actors[:LANES], *more]
