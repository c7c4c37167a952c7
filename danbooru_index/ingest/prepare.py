"""Prepare: tag dumps -> content-addressed Parquet shards; every reject kept and counted.

Streaming: memory does not grow with the input beyond 8 bytes an id. The same input gives the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from danbooru_index.config import PrepareConfig
from danbooru_index.errors import InputError, RejectedRecordsError, StorageError, UsageError
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
from danbooru_index.ingest.shards import LARGEST_SHARD_BYTES, to_table
from danbooru_index.ingest.sources import list_inputs, read_dump, read_translations
from danbooru_index.records import Reason, Record, Reject, describe_rejects


@dataclass(slots=True)
class PrepareReport:
    """What `prepare` read, wrote and left out."""

    out: str
    read: int = 0
    records: int = 0
    with_explanation: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rejects_file: str | None = None

    @property
    def explained_share(self) -> float:
        """The share of accepted records with an explanation, 0 to 1."""
        return self.with_explanation / self.records if self.records else 0.0

    def to_dict(self) -> dict[str, object]:
        return asdict(self) | {
            "rejected": dict(self.rejected),
            "explained_share": round(self.explained_share, 4),
        }

    def to_text(self) -> str:
        lines = [
            (
                f"prepared {self.records:,} of {self.read:,} records in {self.seconds:.1f} s: "
                f"{self.shards:,} shards, {self.bytes / 1e6:.1f} MB, in {self.out}"
            ),
            f"  with an explanation: {self.explained_share:.1%}",
        ]
        if self.rejected:
            lines.append(
                f"  left out: {describe_rejects(self.rejected)}; each with its line in"
                f" {self.rejects_file}"
            )
        return "\n".join(lines)


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write the inputs as content-addressed Parquet shards in `config.out`, replacing what an
    earlier run put there.

    Nothing appears in `config.out` until everything is written. Raises `InputError` for an input
    that cannot be read and for one without a single usable record, `RejectedRecordsError` under
    `strict`.
    """
    started = time.monotonic()
    out = Path(config.out).resolve()
    clear_remains(out)
    check_replaceable(out, config.inputs)
    files = list_inputs(config.inputs, leaving_out=out)
    translations = read_translations(config.translations)
    if translations and not any(".csv" in path.name.lower() for path in files):
        raise UsageError(
            f"--translations {config.translations}: no input is CSV, so there is nothing to add"
            " them to"
        )
    staging = beside(out, STAGING)
    try:
        report = _write_unique(files, translations, staging, config)
        report.seconds = round(time.monotonic() - started, 3)
        if config.strict and report.rejected:
            raise RejectedRecordsError(
                f"{sum(report.rejected.values()):,} of {report.read:,} records would be rejected"
                f" ({describe_rejects(report.rejected)}); the first: {_first_reject(staging)};"
                " nothing was written because of --strict"
            )
        if not report.records:
            raise _nothing_usable(report, config, staging, out)
        if translations and not report.with_explanation:
            raise InputError(
                f"--translations {config.translations}: names none of these {report.records:,} tags"
                f" (its first: {next(iter(translations))[:60]!r}): it takes CSV, tag,text, with the"
                " tags as the input spells them"
            )
        text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n"
        (staging / REPORT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
        replace_folder(staging, out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


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


def _write_unique(
    files: list[Path], translations: dict[str, str], staging: Path, config: PrepareConfig
) -> PrepareReport:
    """One pass over the input; a second one, knowing the suspects, if ids may repeat."""
    hashes = IdHashes()
    report = _write_shards(
        files, translations, staging, config, DuplicateFilter(IdHashes().suspects()), hashes
    )
    suspects = hashes.suspects()
    if len(suspects):
        report = _write_shards(
            files, translations, staging, config, DuplicateFilter(suspects), None
        )
    return report


def _write_shards(
    files: list[Path],
    translations: dict[str, str],
    staging: Path,
    config: PrepareConfig,
    duplicates: DuplicateFilter,
    hashes: IdHashes | None,
) -> PrepareReport:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    report = PrepareReport(out=config.out)
    with (staging / REJECTS_FILE).open("w", encoding="utf-8", errors="backslashreplace") as rejects:
        accepted = _accept(files, translations, duplicates, hashes, report, rejects)
        for records in _batches(accepted, config.shard_rows):
            report.bytes += _write_shard(records, staging, report.shards)
            report.shards += 1
    if report.rejected:
        report.rejects_file = str(Path(config.out) / REJECTS_FILE)
    else:
        (staging / REJECTS_FILE).unlink()
    return report


def _accept(
    files: list[Path],
    translations: dict[str, str],
    duplicates: DuplicateFilter,
    hashes: IdHashes | None,
    report: PrepareReport,
    rejects: TextIO,
) -> Iterator[Record]:
    for path in files:
        for line, item in read_dump(path, translations):
            report.read += 1
            if isinstance(item, Record) and duplicates.is_duplicate(item.id):
                item = Reject(Reason.DUPLICATE_ID, str(path), line, item.id, item.text[:2000])
            if isinstance(item, Reject):
                report.rejected[item.reason.value] += 1
                rejects.write(item.to_json() + "\n")
                continue
            if hashes is not None:
                hashes.add(item.id)
            report.records += 1
            report.with_explanation += bool(item.explanation)
            yield item


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


def _write_shard(records: list[Record], folder: Path, number: int) -> int:
    """Write one shard, named by its place and content; return its size in bytes."""
    buffer = pa.BufferOutputStream()
    pq.write_table(to_table(records), buffer, compression="zstd")
    content = buffer.getvalue()
    name = f"tags-{number:06d}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    (folder / name).write_bytes(content)
    return int(content.size)


def _first_reject(staging: Path) -> str:
    with (staging / REJECTS_FILE).open(encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    return f"{first['source']}:{first['line']} {first['reason']} {first['detail']}".rstrip()
