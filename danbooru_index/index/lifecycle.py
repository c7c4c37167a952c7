"""The life of a generation: which one a build works on, and how it ends: commit, check, sweep, seal, publish.

Called by the owner of the index only. Between any two steps the process may die; the same call goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from danbooru_index.errors import BuildFailedError, RejectedRecordsError, StorageError, first_line
from danbooru_index.failpoints import reach
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.checks import metadata_checksums
from danbooru_index.index.codec import Codec
from danbooru_index.index.commit import commit, sweep_orphans
from danbooru_index.index.compaction import compact, drop_replaced
from danbooru_index.index.completion import CompletionRecord, count_rejects
from danbooru_index.index.lance_io import panics_as_errors
from danbooru_index.index.manifest import Manifest, describe_difference
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import TABLES
from danbooru_index.index.vector_index import build_index


@dataclass(frozen=True, slots=True)
class OpenedGeneration:
    """The generation to work on, and why it is that one; `finished`: it is published already."""

    generation: Generation
    notes: list[str]
    finished: bool = False


def open_generation(
    root: IndexRoot, wanted: Manifest, codec: Codec | None = None, *, strict: bool = False
) -> OpenedGeneration:
    """Go on with the unfinished generation that equals `wanted` in all that must not be mixed, else start a new one.

    A finished one is published again where it is not, unless it leaves records out and `strict` is asked for
    (`RejectedRecordsError`); a damaged one is left alone and built anew.
    """
    known = root.generations()
    damaged: list[str] = []
    for generation in reversed(known):
        manifest = generation.manifest
        if not _same(manifest, wanted):
            continue
        if not manifest.sealed:
            return OpenedGeneration(generation, [f"going on with unfinished generation {generation.id}"])
        if not manifest.failed_shards and not generation.has_its_shards():
            damaged.append(f"generation {generation.id} is damaged (danbooru-index verify): built anew")
            break
        if not manifest.failed_shards:
            if strict and manifest.rejected:
                raise RejectedRecordsError(
                    f"generation {generation.id} is this build, without {sum(manifest.rejected.values()):,} records "
                    f"({', '.join(manifest.rejected)}): refused because of --strict"
                )
            drop_replaced(generation)
            if root.current_id() != generation.id:
                root.publish(generation)
                note = f"generation {generation.id} was complete: published again"
                return OpenedGeneration(generation, [note], finished=True)
            return OpenedGeneration(generation, [], finished=True)
    notes = [*root.damaged().values(), *damaged]
    if known and not damaged:
        last = known[-1]
        why = describe_difference(last.manifest, wanted) or "its failed shards are tried again"
        notes.append(f"new generation, since these differ from {last.id}: {why}")
    return OpenedGeneration(root.start(wanted, codec), notes)


def _same(old: Manifest, wanted: Manifest) -> bool:
    return (
        old.fingerprint_digest == wanted.fingerprint_digest
        and old.input_digest == wanted.input_digest
        and old.query_instruction == wanted.query_instruction
    )


@dataclass(frozen=True, slots=True)
class SealTimes:
    """Seconds of the parts of an ending, and what is worth telling of it."""

    commit: float
    verify: float
    compact: float
    index: float
    notes: list[str]


def seal_and_publish(
    root: IndexRoot,
    generation: Generation,
    records: list[CompletionRecord],
    failed_shards: list[str],
    check: Callable[[Generation, list[CompletionRecord]], dict[str, Any]],
) -> SealTimes:
    """Commit the three tables from the records, `check` them (it raises where one fails), compact, index, seal, publish."""
    manifest = generation.manifest
    reach("build.before_commit")
    if generation.is_sealed_by_now():
        raise StorageError(
            f"generation {generation.id} was finished by another process meanwhile: run the same command again"
        )
    manifest.records = sum(record.rows for record in records)
    began = time.monotonic()
    manifest.versions = commit(generation.path, manifest.specs, records)
    reach("build.after_commit")
    committed = time.monotonic()
    manifest.checks = check(generation, records)
    reach("build.checked")
    checked = time.monotonic()
    notes = compact(generation, records)
    compacted = time.monotonic()
    manifest.versions["dense"] = build_index(generation.path, manifest.versions["dense"], manifest.records)
    indexed = time.monotonic()
    reach("build.indexed")
    sweep_orphans(generation.path, manifest.specs, records, manifest.compacted_parts)
    reach("build.swept")
    manifest.rejected = dict(count_rejects(records))
    manifest.failed_shards = failed_shards
    manifest.files = metadata_checksums(generation.path, manifest.specs)
    manifest.sealed_at = time.time()
    generation.save()
    reach("build.before_publish")
    ended = time.monotonic()
    root.publish(generation)
    reach("build.after_publish")
    drop_replaced(generation)
    verify = checked - committed + ended - indexed
    return SealTimes(committed - began, verify, compacted - checked, indexed - compacted, notes)


def check_tables(generation: Generation, records: list[CompletionRecord]) -> dict[str, Any]:
    """The committed tables against the records: counts, unique ids, one order; raise `BuildFailedError` if they differ."""
    expected = sum(record.rows for record in records)
    problems = [
        f"shard {record.shard}: {record.read} read, {record.rows} kept, {len(record.rejects)} left out"
        for record in records
        if record.rows + len(record.rejects) != record.read
    ]
    counts: dict[str, int] = {}
    try:
        with panics_as_errors():
            reader = GenerationReader(generation)
            counts = reader.counts()
            problems += [
                f"{name}: {counts[name]} rows instead of {expected}" for name in TABLES if counts[name] != expected
            ]
            problems += [] if problems else reader.id_problems()
    except (OSError, RuntimeError, pa.ArrowException) as error:  # a file that went, or is rotten
        problems.append(f"the tables cannot be read back ({first_line(error)})")
    if problems:
        raise BuildFailedError(f"checks failed, nothing was published: {'; '.join(problems[:5])}")
    return {"counts": counts, "passed": ["counts", "ids"]}
