"""The report of a build as one page: no script, nothing fetched, light and dark, on a phone too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from danbooru_index.config import BASELINE_TAGS_PER_SECOND
from danbooru_index.pipeline.charts import STYLE as CHART_STYLE
from danbooru_index.pipeline.report import BuildReport

CSS = """
:root { --ink: #1c1e21; --faint: #5f6670; --line: #c4cad2; --paper: #fff; --card: #f4f6f8;
  --blue: #1769aa; --red: #c62828; --green: #2e7d32; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --faint: #a2abb6; --line: #525a65;
  --paper: #15181c; --card: #20252b; --blue: #64b5f6; --red: #ef9a9a; --green: #81c784 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.35rem; margin: .2rem 0 }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.faint { color: var(--faint); font-size: .9rem }
.cards { display: grid; gap: .7rem; margin: 1rem 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)) }
.cards div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem }
.cards b { display: block; font-size: 1.4rem; line-height: 1.3 }
table { border-collapse: collapse; width: 100%; font-size: .95rem }
td, th { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
td:last-child { overflow-wrap: anywhere }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
h1, li, p, .cards div { overflow-wrap: anywhere }
svg { width: 100%; max-width: 40rem; height: auto; display: block }
.bad { color: var(--red); font-weight: 600 }
.good { color: var(--green); font-weight: 600 }
"""
TAGS_SHOWN = 8  # tags of each kind of change


def report_page(report: BuildReport, charts: Mapping[str, str]) -> str:
    """The page of a report, and its charts by title."""
    title = f"{report.records:,} records: {report.generation}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(report.index)} - {escape(report.model)} (id'
        f" {escape(report.model_id[:12])}) in {escape(report.precision)} on"
        f" {escape(report.device)}</p>",
        _cards(report),
        f'<p class="faint">{escape(report.differs_from_baseline)}.</p>' if report.encoded else "",
        *_guards(report.guards),
        *_changes(report.changes),
        *_quality(report.guards),
        *(
            _section(name, chart + _caption(name, report))
            for name, chart in charts.items()
            if chart
        ),
        *_seconds(report),
        *_rejects(report),
        *_notes(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{CHART_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(part for part in parts if part)}\n</body></html>\n"
    )


def _cards(report: BuildReport) -> str:
    """The headline: what there is, what was done, how fast."""
    rate = report.encode_rate
    cards = [
        (f"{report.records:,}", "records in each of the three tables"),
        (f"{report.encoded:,}", "encoded by this run"),
        (f"{report.reused:,}", "reused vectors") if report.reused else None,
        (f"{sum(report.rejected.values()):,}", "left out") if report.rejected else None,
        (f"{rate:,.1f}/s", "tags, while encoding") if rate else None,
        (
            (f"{rate / BASELINE_TAGS_PER_SECOND:.2f}x", "the published 96.3 tags/s; see below")
            if rate
            else None
        ),
        (f"{report.seconds.total:,.1f} s", "from start to published"),
        (f"{report.bytes / 1e6:,.1f} MB", "tables"),
    ]
    shown = [f"<div><b>{escape(card[0])}</b>{escape(card[1])}</div>" for card in cards if card]
    return f'<div class="cards">{"".join(shown)}</div>'


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}"


def _caption(title: str, report: BuildReport) -> str:
    """What a chart needs to be read rightly."""
    words = {
        "Throughput": "Records whose vectors were used again count here." if report.reused else "",
        "What happened when": "The command itself: start-up, encoding (blue), commit and search"
        " files (green), checks. An actor: while it had shards in hand; busy: its share"
        " of time in the forward pass.",
        "Token lengths": "Areas compare: a bar is as wide as the lengths that it counts.",
    }
    return f'<p class="faint">{words[title]}</p>' if words.get(title) else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Cells are HTML already; `numbers`: the columns that hold numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        named = [' class="n"' if place in numbers else "" for place in range(len(cells))]
        made = zip(cells, named, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for cell, kind in made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table>{line(head, 'th') if any(head) else ''}{body}</table>"


def _guards(guards: Sequence[Mapping[str, Any]]) -> list[str]:
    if not guards:
        return []
    words = {
        True: '<span class="good">passed</span>',
        False: '<span class="bad">failed</span>',
        None: "not compared",
    }
    rows = [
        (f"{escape(one['name'])}<br>{words[one['passed']]}", escape(one["message"]))
        for one in guards
    ]
    return [_section("Guards", _table(("guard", "what it found"), rows))]


def _changes(changes: Mapping[str, Any]) -> list[str]:
    """What changed since the last generation, the most used tags first."""
    if not changes:
        return []
    rows = []
    for name in ("added", "removed", "other text", "other category", "other number of posts"):
        found = changes[name]
        shown = ", ".join(escape(tag) for tag in found["tags"][:TAGS_SHOWN])
        more = " ..." if found["count"] > len(found["tags"][:TAGS_SHOWN]) else ""
        rows.append((name, f"{found['count']:,}", f'<span class="faint">{shown}{more}</span>'))
    table = _table(("", "tags", "the most used, or the largest change, first"), rows, (1,))
    return [_section(f"Changes since {changes['before']}", table)]


def _quality(guards: Sequence[Mapping[str, Any]]) -> list[str]:
    """mAP@10 of known queries by kind, where they were asked."""
    found = [one["details"] for one in guards if one["name"] == "quality"]
    details: dict[str, Any] = (found[0] or {}) if found else {}
    if not details:
        return []
    rows = [
        (escape(kind), f"{old:.3f}", f"{new:.3f}", f"{count:,.0f}")
        for kind, (old, new, count) in details["kinds"].items()
    ]
    head = ("kind of query", "mAP@10 before", "now", "queries")
    return [_section("Known queries", _table(head, rows, (1, 2, 3)))]


def _seconds(report: BuildReport) -> list[str]:
    seconds, stages = report.seconds, report.stages
    rows = [
        ("start-up, until the first token", seconds.startup),
        ("encoding, with reading and writing behind it", seconds.encode),
        ("commit", seconds.commit),
        ("compaction", seconds.compact),
        ("search files and indexes", seconds.index),
        ("checks", seconds.verify),
        ("all of it", seconds.total),
    ]
    shown = [(escape(name), f"{spent:,.1f}") for name, spent in rows if spent >= 0.05]
    summed = ", ".join(f"{name} {spent:,.1f}" for name, spent in stages.items())
    table = _table(("step", "seconds"), shown, (1,))
    return [
        _section(
            "Seconds",
            f'{table}<p class="faint">Summed over all actors, side by side: {escape(summed)} s.'
            f" {report.tokens:,} tokens, {report.truncated:,} texts truncated, padding"
            f" {report.padding_waste:.1%}.</p>",
        )
    ]


def _rejects(report: BuildReport) -> list[str]:
    """Records left out, by reason, with some of each."""
    if not report.rejected:
        return []
    rows = []
    for reason, count in report.rejected.most_common():
        samples = [
            f"{one.get('source', '')}:{one.get('line', '')} {one.get('detail', '')}"
            for one in report.reject_samples
            if one.get("reason") == reason
        ]
        shown = "<br>".join(escape(sample[:160]) for sample in samples)
        rows.append((escape(reason), f"{count:,}", f'<span class="faint">{shown}</span>'))
    where = f'<p class="faint">All of them: {escape(report.rejects_file or "")}</p>'
    return [_section("Left out", _table(("reason", "records", "such as"), rows, (1,)) + where)]


def _notes(report: BuildReport) -> list[str]:
    if not report.notes:
        return []
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return [_section("Notes", f"<ul>{items}</ul>")]
