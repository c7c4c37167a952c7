"""Prepare: tag dumps -> content-addressed Parquet shards; every reject kept and counted.

Streaming: memory does not grow with the input beyond 8 bytes an id. The same input gives the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from danbooru_index.errors import InputError, RejectedRecordsError, StorageError
from danbooru_index.ingest.duplicates import DuplicateFilter, IdHashes
from danbooru_index.ingest.output_folder import (
    REJECTS_FILE,
    REPORT_FILE,
    STAGING,
    beside,
    check_replaceable,
    clear_remains,
    replace_folder,
)
from danbooru_index.ingest.prepare_input import PrepareInput, open_input_files
from danbooru_index.ingest.prepare_report import PrepareReport
from danbooru_index.ingest.shard_files import MARKS_KEY
from danbooru_index.ingest.shards import LARGEST_SHARD_BYTES, to_table
from danbooru_index.prepare_config import PrepareConfig
from danbooru_index.records import Reason, Record, Reject, describe_rejects


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write the inputs as content-addressed Parquet shards in `config.out`, replacing what an
    earlier run put there.

    Nothing appears in `config.out` until everything is written. Raises `UsageError` for options
    that do not fit the input, `InputError` for an input that cannot be read, is not understood or
    was probably misunderstood, and for one without a single usable record, `RejectedRecordsError`
    under `strict`.
    """
    started = time.monotonic()
    out = Path(config.out).resolve()
    clear_remains(out)
    check_replaceable(out, config.inputs)
    source = open_input_files(config, out)
    staging = beside(out, STAGING)
    try:
        report = _write_unique(source, staging, config)
        report.seconds = round(time.monotonic() - started, 3)
        _refuse(report, source, config, staging, out)
        if not config.dry_run:
            text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n"
            (staging / REPORT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
            replace_folder(staging, out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _refuse(
    report: PrepareReport, source: PrepareInput, config: PrepareConfig, staging: Path, out: Path
) -> None:
    """Raise for what is not to be published: rejects under `strict`, nothing usable, nonsense."""
    if config.strict and report.rejected:
        raise RejectedRecordsError(
            f"{sum(report.rejected.values()):,} of {report.read:,} records would be rejected"
            f" ({describe_rejects(report.rejected)}); the first: {_first_reject(staging)};"
            " nothing was written because of --strict"
        )
    if not report.records:
        raise _nothing_usable(report, config, staging, out)
    source.refuse_unjoined(report)
    problem = source.plausibility.problem()
    if problem and not config.dump.accept_unlikely:
        raise InputError(
            f"{', '.join(config.inputs)}: probably misunderstood: {problem}; see what was"
            " understood with --dry-run --accept-unlikely, and say it by --map, --site or"
            " --encoding; --accept-unlikely goes on"
        )


def _nothing_usable(
    report: PrepareReport, config: PrepareConfig, staging: Path, out: Path
) -> InputError:
    """No record at all: what is in `out` stays; the rejects are kept beside it."""
    where = ""
    if report.rejected:
        kept = out.with_name(f"{out.name}.rejects.jsonl")
        shutil.copy(staging / REJECTS_FILE, kept)
        where = f" ({describe_rejects(report.rejected)}); see {kept}"
    return InputError(
        f"no usable record in {', '.join(config.inputs)}{where}; nothing was written to {out}"
    )


def _write_unique(source: PrepareInput, staging: Path, config: PrepareConfig) -> PrepareReport:
    """One pass over the input; a second one, knowing what the first found out: which ids may
    repeat, and which dumps say themselves what is not safe for work.
    """
    hashes = IdHashes()
    nothing = IdHashes().suspects()
    marks = source.nsfw_marks
    report = _write_shards(source, staging, config, DuplicateFilter(nothing), hashes)
    suspects = hashes.suspects()
    if len(suspects) or source.nsfw_marks != marks:
        report = _write_shards(source, staging, config, DuplicateFilter(suspects), None)
    return report


def _write_shards(
    source: PrepareInput,
    staging: Path,
    config: PrepareConfig,
    duplicates: DuplicateFilter,
    hashes: IdHashes | None,
) -> PrepareReport:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    report = source.new_report(config.out)
    with (staging / REJECTS_FILE).open("w", encoding="utf-8", errors="backslashreplace") as rejects:
        accepted = _accept(_Pass(source, report, duplicates, hashes, rejects))
        for records in _batches(accepted, config.shard_rows):
            if not config.dry_run:
                report.bytes += _write_shard(records, staging, report.shards, source.nsfw_marks)
            report.shards += 1
    source.complete(report)
    if report.rejected:
        report.rejects_file = None if config.dry_run else str(Path(config.out) / REJECTS_FILE)
    else:
        (staging / REJECTS_FILE).unlink()
    return report


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass over the input fills in."""

    source: PrepareInput
    report: PrepareReport
    duplicates: DuplicateFilter
    hashes: IdHashes | None
    rejects: TextIO


def _accept(one: _Pass) -> Iterator[Record]:
    """The records that are taken, marked; rejects are written and counted."""
    report = one.report
    for place, (line, item) in one.source.items():
        report.read += 1
        if isinstance(item, Record) and one.duplicates.is_duplicate(item.id):
            path = str(one.source.dumps[place].path)
            item = Reject(Reason.DUPLICATE_ID, path, line, item.id, item.text[:2000])
        if isinstance(item, Reject):
            report.rejected[item.reason.value] += 1
            one.rejects.write(item.to_json() + "\n")
            continue
        if one.hashes is not None:
            one.hashes.add(item.id)
        yield one.source.taken(item, place, report)


def _batches(records: Iterable[Record], rows: int) -> Iterator[list[Record]]:
    """Lists of at most `rows` records and about `LARGEST_SHARD_BYTES` of text."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.text)
        if len(batch) == rows or size > LARGEST_SHARD_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(records: list[Record], folder: Path, number: int, marks: str) -> int:
    """Write one shard, named by its place and content; return its size in bytes."""
    buffer = pa.BufferOutputStream()
    table = to_table(records).replace_schema_metadata({MARKS_KEY: marks})
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue()
    name = f"tags-{number:06d}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    (folder / name).write_bytes(content)
    return int(content.size)


def _first_reject(staging: Path) -> str:
    with (staging / REJECTS_FILE).open(encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    return f"{first['source']}:{first['line']} {first['reason']} {first['detail']}".rstrip()
