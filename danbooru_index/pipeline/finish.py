"""The end of a build: all shards done, checks passed, the generation published.

Else it says which shards have none, or which check failed, and publishes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from danbooru_index.errors import BuildFailedError, RejectedRecordsError
from danbooru_index.index.catalog import Generation, Guard, IndexRoot
from danbooru_index.index.completion import CompletionRecord, count_rejects
from danbooru_index.index.lifecycle import SealTimes, seal_and_publish
from danbooru_index.index.manifest import Checks
from danbooru_index.index.reader import GenerationReader
from danbooru_index.pipeline.driver import EncodeOutcome
from danbooru_index.pipeline.plan import BuildPlan
from danbooru_index.pipeline.resume import Work, done_records
from danbooru_index.pipeline.self_check import check_tables, self_queries
from danbooru_index.records import describe_rejects


@dataclass(frozen=True, slots=True)
class Sealed:
    """A published generation: its completion records by shard, and the seconds of each step."""

    records: dict[str, CompletionRecord]
    times: SealTimes


def finish(
    plan: BuildPlan, root: IndexRoot, work: Work, outcome: EncodeOutcome, guard: Guard | None = None
) -> Sealed:
    """Commit, check, seal and publish; `guard`: see `lifecycle`.

    `outcome.failed` is afterwards what has no record. Raises `BuildFailedError` or
    `RejectedRecordsError`.
    """
    generation = work.generation
    records = done_records(plan, generation)
    _refuse_missing(plan, outcome, records)
    ordered = [records[shard.id] for shard in plan.scan.shards if shard.id in records]
    counts = count_rejects(ordered)
    if not sum(record.rows for record in ordered):
        raise BuildFailedError(
            f"every record was rejected ({describe_rejects(counts)}): nothing to publish"
        )
    if plan.config.strict and counts:
        raise RejectedRecordsError(
            f"{describe_rejects(counts)}: nothing was published because of --strict"
        )
    times = seal_and_publish(
        root,
        generation,
        ordered,
        list(outcome.failed),
        lambda *made: _check(plan, outcome, *made),
        guard,
    )
    return Sealed(records, times)


def _refuse_missing(
    plan: BuildPlan, outcome: EncodeOutcome, records: dict[str, CompletionRecord]
) -> None:
    """Raise `BuildFailedError` for missing shards, unless failed ones may be left out."""
    missing = [shard for shard in plan.scan.shards if shard.id not in records]
    gone = "no completion record: its worker went away; run the same command to go on"
    outcome.failed = {shard.id: outcome.failed.get(shard.id, gone) for shard in missing}
    if missing and not (plan.config.allow_failed_shards and records):
        named = "; ".join(
            f"{shard.id} ({shard.path}): {outcome.failed[shard.id]}" for shard in missing[:5]
        )
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BuildFailedError(
            f"{len(missing)} of {len(plan.scan.shards)} shards failed, nothing was published:"
            f" {named}{more}; run the same command to try them again, or add --allow-failed-shards"
            " to publish without them"
        )


def _check(
    plan: BuildPlan,
    outcome: EncodeOutcome,
    generation: Generation,
    versions: Mapping[str, int],
    records: list[CompletionRecord],
) -> Checks:
    """What a generation must pass to be published; raise `BuildFailedError` with what failed."""
    checks = check_tables(generation, versions, records)
    if outcome.samples is None:
        raise BuildFailedError(
            f"the sampled records could not be encoded again ({outcome.samples_problem}); nothing"
            " was published"
        )
    kept = _samples_kept(plan, outcome, records)
    samples = [sample for sample, keep in zip(plan.samples.checked, kept, strict=True) if keep]
    if problems := self_queries(
        GenerationReader(generation, versions), samples, outcome.samples.keep(kept)
    ):
        raise BuildFailedError(f"checks failed, nothing was published: {'; '.join(problems[:5])}")
    return replace(checks, passed=(*checks.passed, "self_queries"), self_queries=int(kept.sum()))


def _samples_kept(
    plan: BuildPlan, outcome: EncodeOutcome, records: list[CompletionRecord]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The samples that must be in the tables: not of failed shards, not non-finite."""
    done = {record.shard for record in records}
    gone = {reject["detail"].removeprefix("id ") for record in records for reject in record.rejects}
    spoilt = set(outcome.samples.non_finite.tolist()) if outcome.samples else set()
    return np.array(
        [
            s.shard in done and s.id not in gone and n not in spoilt
            for n, s in enumerate(plan.samples.checked)
        ],
        dtype=bool,
    )
