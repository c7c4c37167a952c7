"""Where a build goes on: its generation, and the shards without a completion record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from danbooru_index.errors import StorageError
from danbooru_index.index import compaction
from danbooru_index.index.catalog import Generation, Guard, IndexRoot
from danbooru_index.index.completion import CompletionRecord, read_records
from danbooru_index.index.estimate import index_bytes
from danbooru_index.index.lifecycle import open_generation
from danbooru_index.index.manifest import describe_difference
from danbooru_index.index.old_vectors import OldVectors, old_vectors
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.plan import BuildPlan
from danbooru_index.pipeline.protocol import WorkerSettings


@dataclass(frozen=True, slots=True)
class Work:
    """A generation and its pending shards; `records`: of those that are done; `notes`: what is
    worth telling; `old`: vectors that may be used again.

    `finished`: the generation is complete and published, `published_now`: just now.
    """

    generation: Generation
    records: Mapping[str, CompletionRecord]
    pending: tuple[Shard, ...]
    settings: WorkerSettings
    notes: tuple[str, ...]
    finished: bool
    old: OldVectors | None = None
    published_now: bool = False


def find_work(plan: BuildPlan, root: IndexRoot, guard: Guard | None = None) -> Work:
    """Go on with the generation that this plan began, or begin one; `guard`: see `lifecycle`.

    Raises `RejectedRecordsError` under `--strict` for a finished one that leaves records out,
    `StorageError` where the tables to come do not fit the disk.
    """
    codec = plan.projection.codec if plan.projection else None
    opened = open_generation(root, plan.wanted, codec, strict=plan.config.strict, guard=guard)
    generation = opened.generation
    records = done_records(plan, generation, sealed=opened.finished)
    pending = (
        ()
        if opened.finished
        else tuple(shard for shard in plan.scan.shards if shard.id not in records)
    )
    notes, settings = (
        list(opened.notes),
        replace(plan.settings, generation=generation.path.absolute()),
    )
    old = None
    if pending and plan.config.reuse:
        old, told = _reusable(plan, root)
        notes += told
    if pending:
        notes += _room(plan, generation, pending)
        largest = max(shard.rows for shard in pending)
        settings = replace(settings, shard_tokens=int(plan.tokens_per_text * largest))
    return Work(
        generation,
        records,
        pending,
        settings,
        tuple(notes),
        opened.finished,
        old,
        opened.published_now,
    )


def _reusable(plan: BuildPlan, root: IndexRoot) -> tuple[OldVectors | None, list[str]]:
    """The vectors of the published generation, where the same model would make them again; and what
    is told of that.
    """
    try:
        if root.current_id() is None:
            return None, []
        last = root.current()
        if last.manifest.fingerprint_digest == plan.wanted.fingerprint_digest:
            return old_vectors(last), [f"texts that {last.id} has are not encoded again"]
        why = describe_difference(
            last.manifest, replace(plan.wanted, input_digest=last.manifest.input_digest)
        )
        return None, [f"every text is encoded, since {last.id} differs in: {why}"]
    except StorageError as error:
        return None, [f"every text is encoded, since nothing can be used again: {error}"]


def done_records(
    plan: BuildPlan, generation: Generation, *, sealed: bool = False
) -> dict[str, CompletionRecord]:
    """The completion records of a build's shards that can be believed, by shard."""
    manifest = generation.manifest
    shards = [shard.id for shard in plan.scan.shards]
    return read_records(
        generation.path,
        shards,
        manifest.fingerprint_digest,
        sealed=sealed,
        compacted=manifest.compacted,
    )


def _bytes_beside(generation: Generation) -> int:
    """The bytes that other generations of the index hold."""
    own = f"{generation.path.name}/"
    sizes = generation.path.parent.sizes()
    return sum(size for name, size in sizes.items() if not name.startswith(own))


def _room(plan: BuildPlan, generation: Generation, pending: tuple[Shard, ...]) -> list[str]:
    """What the tables to come need, in words; refuse a build that would not fit the disk."""
    records = sum(shard.rows for shard in pending)
    needed = index_bytes(
        records, plan.settings.dim, plan.settings.colbert_dim, plan.tokens_per_text
    )
    free = generation.path.free_bytes()
    if needed > free:
        raise StorageError(
            f"{plan.config.index}: the tables of {records:,} records need about {needed / 1e9:.1f}"
            f" GB and {free / 1e9:.1f} GB are free; free some space (other generations hold"
            f" {_bytes_beside(generation) / 1e9:.1f} GB: danbooru-index prune), or put --index on a"
            " larger disk"
        )
    beside = _bytes_beside(generation)
    held = f" beside {beside / 1e6:,.1f} MB of other generations" if beside else ""
    notes = [f"tables of about {needed / 1e6:,.1f} MB to come{held}; {free / 1e9:,.0f} GB free"]
    if len(pending) >= compaction.FRAGMENTS and records < len(pending) * compaction.SMALL_ROWS:
        notes.append(
            f"{len(pending):,} shards of {records / len(pending):,.0f} records each on average keep"
            f" a device waiting; danbooru-index prepare {plan.config.shards} --out FOLDER makes"
            " larger ones of them"
        )
    return notes
