"""What only a rebuild can report: its dump, its guards, and what changed since the last one."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from danbooru_index.errors import DanbooruIndexError
from danbooru_index.index.difference import diff
from danbooru_index.ingest.prepare_report import PrepareReport
from danbooru_index.pipeline.guards import Guards
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.pipeline.report_files import save_report
from danbooru_index.pipeline.reporting import sampled_rejects
from danbooru_index.storage.base import Storage

TAGS_KEPT = 20  # of each kind of change, in a report
REJECTS_READ = 100_000  # for samples of each reason


def complete_report(
    report: BuildReport, prepared: PrepareReport, guards: Guards, generation: Storage
) -> None:
    """Add what was prepared and guarded; write its files anew, where the build wrote some or a
    guard had kept the generation back.
    """
    counted = f"prepared {prepared.records:,} of {prepared.read:,} records"
    report.notes[:0] = [*prepared.understood_notes, counted, *guards.notes]
    report.guards = [one.to_dict() for one in guards.results]
    report.rejected.update(prepared.rejected)
    report.read += sum(prepared.rejected.values())
    report.rejects_file = prepared.rejects_file or report.rejects_file
    report.reject_samples[:0] = _reject_samples(prepared)
    if report.page is not None or not (generation / "report.html").exists():
        save_report(report, generation)


def changes_between(index: str, before: str, after: str) -> dict[str, Any]:
    """What changed from one generation to another: of each kind how many tags, and the first of
    them; empty where there is nothing to compare.
    """
    if before in ("", after):
        return {}
    try:
        found = diff(index, before, after)
    except DanbooruIndexError:
        return {}  # the one before may be damaged
    kinds = {
        "added": found.added,
        "removed": found.removed,
        "other text": found.texts,
        "other category": found.categories,
        "other number of posts": found.moved,
    }
    return {"before": before} | {
        name: {
            "count": len(items),
            "tags": [item["tag"] or item["id"] for item in items[:TAGS_KEPT]],
        }
        for name, items in kinds.items()
    }


def _reject_samples(prepared: PrepareReport) -> list[dict[str, Any]]:
    """Some of the records that `prepare` left out, where its file of them is on a disk."""
    if prepared.rejects_file is None or not Path(prepared.rejects_file).is_file():
        return []
    with open(prepared.rejects_file, encoding="utf-8", errors="replace") as lines:
        return sampled_rejects(map(json.loads, islice(lines, REJECTS_READ)))
