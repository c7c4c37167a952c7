"""All that `prepare` reads: dumps as they were understood, translations, pages, lists of tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from danbooru_index.choices import Site
from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.asked_mapping import AskedMapping
from danbooru_index.ingest.dumps import Dump, DumpKind
from danbooru_index.ingest.nsfw import NsfwMarks
from danbooru_index.ingest.parquet import Located
from danbooru_index.ingest.plausible import Plausibility
from danbooru_index.ingest.prepare_report import PrepareReport
from danbooru_index.ingest.sources import list_inputs
from danbooru_index.ingest.tag_notes import TagNotes
from danbooru_index.ingest.translations import TranslationsRead, read_tag_list, read_translations
from danbooru_index.ingest.understanding import DumpOptions, open_dump
from danbooru_index.prepare_config import PrepareConfig
from danbooru_index.records import Record

LEAST_JOINED = 0.05  # share of the tags in files of translations that name a record


@dataclass(slots=True)
class PrepareInput:
    """What is read, and what was found out about it so far. `dumps` give records; wiki pages beside
    them are notes on their tags.
    """

    dumps: list[Dump]
    notes: TagNotes
    marks: NsfwMarks
    translations: list[TranslationsRead]
    pages: int
    config: PrepareConfig
    passed_over: int = 0  # of the wiki pages that were joined
    plausibility: Plausibility = field(default_factory=Plausibility)

    @property
    def nsfw_marks(self) -> str:
        """How records are marked as not safe for work, in words."""
        return self.marks.source([str(dump.path) for dump in self.dumps])

    def new_report(self, out: str) -> PrepareReport:
        """A report of one pass, in which nothing was read yet."""
        self.plausibility = Plausibility()
        self.notes.joined.clear()
        self.marks.found = 0
        self.notes.passed_over = self.passed_over
        understood = [dump.understood() | {"samples": []} for dump in self.dumps]
        return PrepareReport(out, understood=understood, dry_run=self.config.dry_run)

    def items(self) -> Iterator[tuple[int, Located]]:
        """(which dump, (line, record or reject)) of the whole input."""
        for place, dump in enumerate(self.dumps):
            for located in dump.records(self.notes, self.marks.rated):
                yield place, located

    def taken(self, record: Record, place: int, report: PrepareReport) -> Record:
        """A record that is taken: marked, and counted."""
        dump = self.dumps[place]
        mark = self.marks.mark(record, str(dump.path))
        if mark is not None and not record.nsfw:
            record = replace(record, nsfw=True)
        if dump.makes_text:
            self.plausibility.add(record)
        report.add(record, place, mark)
        return record

    def complete(self, report: PrepareReport) -> None:
        """Add what is known at the end of a pass."""
        report.nsfw_marks = self.nsfw_marks
        report.pages, report.pages_passed_over = self.pages, self.notes.passed_over
        report.translations = [
            {
                "file": read.path,
                "tags": len(read.tags),
                "joined": len(read.tags & self.notes.joined),
                "left_out": read.left_out,
                "columns": dict(read.columns),
                "unused": list(read.unused),
            }
            for read in self.translations
        ]
        if self.translations:
            report.joined = self.notes.joined_translations
            known = len(self.notes.translated)
            report.joined_share = round(report.joined / known, 4) if known else 0.0

    def refuse_unjoined(self, report: PrepareReport) -> None:
        """Raise `InputError` for translations, or a list, of other tags than the input's."""
        if self.marks.listed and not self.marks.found:
            raise InputError(
                f"--nsfw-tags {', '.join(self.config.dump.nsfw_tags)}: names none of these"
                f" {report.records:,} tags: it takes one name a line, or a column of them"
            )
        if report.joined_share is None:
            return
        for read in self.translations:
            if read.tags.isdisjoint(self.notes.joined):
                raise InputError(
                    f"--translations {read.path}: names none of these {report.records:,} tags (its"
                    f" first: {read.first[:60]!r}): it takes two columns, the tags and their"
                    " explanations"
                )
        names, first = ", ".join(self.config.translation_files), self.translations[0].first
        few = report.joined_share < LEAST_JOINED and report.joined < LEAST_JOINED * report.records
        if few and not self.config.dump.accept_unlikely:
            raise InputError(
                f"--translations {names}: names {report.joined:,} of these {report.records:,} tags,"
                f" {report.joined_share:.1%} of its own (its first: {first[:60]!r});"
                " --accept-unlikely goes on"
            )


def open_input_files(config: PrepareConfig, out: Path) -> PrepareInput:
    """Understand every file of the input. Raises `InputError` and `UsageError`."""
    said = config.dump
    options = DumpOptions(
        AskedMapping.parse(said.map),
        Site.parse(said.site) if said.site else None,
        said.encoding,
        said.table,
    )
    files = list_inputs(config.inputs, leaving_out=out)
    dumps = [open_dump(path, options) for path in files]
    notes, pages = TagNotes(), 0
    if any(dump.kind is not DumpKind.WIKI_PAGE for dump in dumps):
        pages = sum(d.describe_to(notes) for d in dumps if d.kind is DumpKind.WIKI_PAGE)
        dumps = [dump for dump in dumps if dump.kind is not DumpKind.WIKI_PAGE]
    if config.translation_files and not any(dump.makes_text for dump in dumps):
        raise UsageError(
            f"--translations {', '.join(config.translation_files)}: every record of the input"
            " brings its own text, so there is nothing to add them to"
        )
    translations = [
        read_translations(path, said.encoding, notes) for path in config.translation_files
    ]
    listed = [read_tag_list(path, said.encoding) for path in said.nsfw_tags]
    marks = NsfwMarks(frozenset().union(*listed), said.nsfw_words)
    marks.rated |= {str(dump.path) for dump in dumps if dump.is_rated}
    return PrepareInput(dumps, notes, marks, translations, pages, config, notes.passed_over)
