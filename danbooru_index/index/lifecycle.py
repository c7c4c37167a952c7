"""A generation's life: which one a build works on; commit, check, sweep, seal, publish.

Called by the owner of the index only. Between any two steps the process may die; the same call goes
on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from danbooru_index.errors import RejectedRecordsError, StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index.catalog import Generation, Guard, IndexRoot
from danbooru_index.index.checks import metadata_checksums
from danbooru_index.index.codec import Codec
from danbooru_index.index.commit import commit, sweep_orphans
from danbooru_index.index.compaction import compact, drop_replaced
from danbooru_index.index.completion import CompletionRecord, count_rejects
from danbooru_index.index.derive import derive
from danbooru_index.index.manifest import Checks, Manifest, Seal, describe_difference
from danbooru_index.index.publish import publish
from danbooru_index.index.vector_index import build_index


@dataclass(frozen=True, slots=True)
class OpenedGeneration:
    """The generation to work on, and why it is that one; `finished`: it is complete and published,
    `published_now`: by this call.
    """

    generation: Generation
    notes: list[str]
    finished: bool = False
    published_now: bool = False


def open_generation(
    root: IndexRoot,
    wanted: Manifest,
    codec: Codec | None = None,
    *,
    strict: bool = False,
    guard: Guard | None = None,
) -> OpenedGeneration:
    """Go on with the unfinished generation that equals `wanted` in all that must not be mixed, else
    start a new one.

    A finished one is published again where it is not, if its guard lets it pass, unless it leaves
    records out and `strict` is asked for (`RejectedRecordsError`); a damaged one is left alone and
    built anew.
    """
    known = root.generations()
    damaged: list[str] = []
    for generation in reversed(known):
        manifest = generation.manifest
        if not _same(manifest, wanted):
            continue
        if not manifest.sealed:
            return OpenedGeneration(
                generation, [f"going on with unfinished generation {generation.id}"]
            )
        seal = manifest.need_seal()
        if not seal.failed_shards and not generation.has_its_shards():
            damaged.append(
                f"generation {generation.id} is damaged (danbooru-index verify): built anew"
            )
            break
        if not seal.failed_shards:
            if strict and seal.rejected:
                raise RejectedRecordsError(
                    f"generation {generation.id} is this build, without"
                    f" {sum(seal.rejected.values()):,} records ({', '.join(seal.rejected)}):"
                    " refused because of --strict"
                )
            drop_replaced(generation)
            if root.current_id() != generation.id:
                _consult(guard, generation)
                publish(root, generation)
                note = f"generation {generation.id} was complete: published again"
                return OpenedGeneration(generation, [note], finished=True, published_now=True)
            return OpenedGeneration(generation, [], finished=True)
    notes = [*root.damaged().values(), *damaged]
    if known and not damaged:
        last = known[-1]
        why = describe_difference(last.manifest, wanted) or "its failed shards are tried again"
        notes.append(f"new generation, since these differ from {last.id}: {why}")
    return OpenedGeneration(root.start(wanted, codec), notes)


def _consult(guard: Guard | None, generation: Generation) -> None:
    if guard is not None:
        guard(generation)


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


# (generation, version of each table, completion records) -> what was checked; raises where a check
# fails.
Check = Callable[[Generation, Mapping[str, int], list[CompletionRecord]], Checks]


def seal_and_publish(
    root: IndexRoot,
    generation: Generation,
    records: list[CompletionRecord],
    failed_shards: Sequence[str],
    check: Check,
    guard: Guard | None = None,
) -> SealTimes:
    """Commit the three tables from the records, `check` them, compact, index, seal, and publish if
    the `guard` lets it pass.
    """
    specs, clock = generation.manifest.specs, _Clock()
    reach("build.before_commit")
    if generation.is_sealed_by_now():
        raise StorageError(
            f"generation {generation.id} was finished by another process meanwhile: run the same"
            " command again"
        )
    versions = commit(generation.path, specs, records)
    reach("build.after_commit")
    clock.note("commit")
    checks = check(generation, versions, records)
    reach("build.checked")
    clock.note("verify")
    compaction = compact(generation, versions, records)
    clock.note("compact")
    rows = sum(record.rows for record in records)
    versions = {
        **compaction.versions,
        "dense": build_index(generation.path, compaction.versions["dense"], rows),
    }
    search_files = derive(generation, versions)
    clock.note("index")
    reach("build.indexed")
    sweep_orphans(generation.path, specs, records, compaction.parts)
    reach("build.swept")
    seal = Seal(
        sealed_at=time.time(),
        versions=versions,
        records=rows,
        rejected=dict(count_rejects(records)),
        failed_shards=tuple(failed_shards),
        checks=checks,
        files=metadata_checksums(generation.path, specs),
        compacted=compaction.parts,
        search_files=search_files,
    )
    sealed = replace(generation, manifest=replace(generation.manifest, seal=seal))
    sealed.save()
    reach("build.sealed")
    _consult(guard, sealed)
    reach("build.before_publish")
    clock.note("verify")
    publish(root, sealed)
    reach("build.after_publish")
    drop_replaced(sealed)
    return SealTimes(**clock.seconds, notes=compaction.notes)


class _Clock:
    """Seconds by step: each from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def note(self, step: str) -> None:
        """A step has ended."""
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now
