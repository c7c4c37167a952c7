"""What `prepare` understood, read, wrote and left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from danbooru_index.ingest.nsfw import MarkSource
from danbooru_index.records import Record, describe_rejects

SHOWN_RECORDS = 3  # records of each dump that are shown as they are stored


@dataclass(slots=True)
class PrepareReport:
    """The fields of `prepare --json`. `understood`: of each dump, and three of its records;
    `translations`: of each file of them; `nsfw`: how many are marked, and by what.
    """

    out: str
    read: int = 0
    records: int = 0
    with_explanation: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rejects_file: str | None = None
    dry_run: bool = False
    understood: list[dict[str, Any]] = field(default_factory=list)
    translations: list[dict[str, Any]] = field(default_factory=list)
    joined: int = 0
    joined_share: float | None = None
    pages: int = 0
    pages_passed_over: int = 0
    nsfw_marks: str = ""
    nsfw: Counter[str] = field(default_factory=Counter)

    @property
    def explained_share(self) -> float:
        """The share of accepted records with an explanation, 0 to 1."""
        return self.with_explanation / self.records if self.records else 0.0

    def to_dict(self) -> dict[str, object]:
        return asdict(self) | {
            "rejected": dict(self.rejected),
            "nsfw": dict(self.nsfw),
            "explained_share": round(self.explained_share, 4),
        }

    def add(self, record: Record, place: int, mark: MarkSource | None) -> None:
        """Count one record of the dump at `place`; keep the first as samples."""
        self.records += 1
        self.with_explanation += bool(record.explanation)
        if mark is not None:
            self.nsfw[mark.value] += 1
        samples = self.understood[place]["samples"]
        if len(samples) < SHOWN_RECORDS:
            samples.append({**asdict(record), "aliases": list(record.aliases)})

    @property
    def understood_notes(self) -> list[str]:
        """How each dump was read, a line each."""
        return [" ".join(map(str.strip, _understood_lines(dump)[:2])) for dump in self.understood]

    def to_text(self) -> str:
        lines = [line for dump in self.understood for line in _understood_lines(dump)]
        if self.dry_run:
            lines.append(f"would prepare {self.records:,} of {self.read:,} records (--dry-run)")
        else:
            lines.append(
                f"prepared {self.records:,} of {self.read:,} records in {self.seconds:.1f} s:"
                f" {self.shards:,} shards, {self.bytes / 1e6:.1f} MB, in {self.out}"
            )
        lines.append(f"  with an explanation: {self.explained_share:.1%}")
        for file in self.translations:
            spoilt = f", {file['left_out']:,} rows left out" if file["left_out"] else ""
            others = f"; left out: {', '.join(file['unused'])}" if file["unused"] else ""
            lines.append(
                f"  translations: {file['file']}: {file['tags']:,} tags, {file['joined']:,} of them"
                f" the input's{spoilt}{others}"
            )
        if self.joined_share is not None:
            lines.append(
                f"  translated: {self.joined:,} tags of the input, {self.joined_share:.1%} of those"
                " in these files"
            )
        if self.pages:
            lines.append(f"  wiki pages about tags: {self.pages:,}")
        if self.pages_passed_over:
            passed = f"{self.pages_passed_over:,}"
            lines.append(f"  wiki pages passed over, deleted or about no tag: {passed}")
        lines.append(f"  not safe for work: {_nsfw_text(self.nsfw, self.nsfw_marks)}")
        if self.rejected:
            where = f"; each with its line in {self.rejects_file}" if self.rejects_file else ""
            lines.append(f"  left out: {describe_rejects(self.rejected)}{where}")
        return "\n".join(lines)


def _nsfw_text(counts: Counter[str], source: str) -> str:
    by = {"input": "by the dump itself", "words": "by words", "list": "by the list given"}
    told = [f"{count:,} {by[name]}" for name, count in counts.most_common()]
    unknown = "; a dump without ratings is not marked by words" if "no ratings" in source else ""
    return f"{' and '.join(told) or 'none'}{unknown}"


def _understood_lines(dump: dict[str, Any]) -> list[str]:
    """How a dump was read, and its first records as they are stored."""
    words = [dump["format"]]
    words += [f"{dump['delimiter']}-separated"] if dump["delimiter"] else []
    words += [dump["encoding"]] if dump["encoding"] not in (None, "utf-8") else []
    words += ["no header"] if not dump["header"] else []
    words += [f"categories of {dump['site']}"] if dump["site"] else []
    columns = [
        f"{column} -> {of}" if column != of else column for column, of in dump["columns"].items()
    ]
    columns += [f"{value!r} -> {of}" for of, value in dump["constants"].items()]
    left_out = f"; left out: {', '.join(dump['left_out'][:8])}" if dump["left_out"] else ""
    lines = [
        f"{dump['file']}: {', '.join(words)}",
        f"  {', '.join(columns)}{left_out}; text {dump['text']}",
    ]
    return lines + [f"    {_sample_line(record)}" for record in dump["samples"]]


def _sample_line(record: dict[str, Any]) -> str:
    posts = record["post_count"]
    details = [f"id {record['id']}"]
    details += [f"{posts:,} posts"] if posts is not None else []
    details += [f"aliases {', '.join(record['aliases'][:4])}"] if record["aliases"] else []
    details += [mark for mark in ("nsfw", "deprecated") if record[mark]]
    text = record["text"].replace("\n", " ")
    shown = f"{text[:100]}..." if len(text) > 100 else text
    return f"{shown}  ({'; '.join(details)})"
