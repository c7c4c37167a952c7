"""What an index holds (`status`), and whether all of it reads as it was written (`verify`)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from danbooru_index.errors import StorageError
from danbooru_index.index.catalog import Generation, IndexRoot, done_shards
from danbooru_index.index.checks import damaged_files, verify_table
from danbooru_index.index.compaction import verify_compacted
from danbooru_index.index.completion import read_record
from danbooru_index.index.origins import encoding_times


@dataclass(slots=True)
class GenerationStatus:
    """One generation in words."""

    id: str
    state: str
    model: str
    model_id: str
    precision: str
    max_length: int
    records: int
    shards: int
    done: int
    created_at: float
    sealed_at: float | None
    bytes: int
    colbert_dim: int
    nsfw_marks: str = ""

    def to_text(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.sealed_at or self.created_at))
        rows = (
            f"{self.records:,} records"
            if self.sealed_at
            else f"{self.done} of {self.shards} shards done"
        )
        return (
            f"  {self.id}  {self.state:<10} {when}  {rows}, {self.bytes / 1e6:,.1f} MB,"
            f" {self.model} (id {self.model_id[:12]}) in {self.precision}, up to {self.max_length}"
            f" tokens, ColBERT at {self.colbert_dim} values"
            f"{f', nsfw by {self.nsfw_marks}' if self.nsfw_marks else ''}"
        )


@dataclass(slots=True)
class IndexStatus:
    """Every generation of an index, and which is published."""

    index: str
    published: str | None
    generations: list[GenerationStatus] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        items = [{name: getattr(g, name) for name in g.__slots__} for g in self.generations]
        return {
            "index": self.index,
            "published": self.published,
            "generations": items,
            "problems": self.problems,
        }

    def to_text(self) -> str:
        published = f"generation {self.published} is" if self.published else "nothing"
        head = f"{self.index}: {published} published"
        damaged = [f"  damaged: {problem}" for problem in self.problems]
        return "\n".join(
            [head, *(generation.to_text() for generation in self.generations), *damaged]
        )


def status(path: str) -> IndexStatus:
    """Describe the index at `path`. Raises `StorageError` where there is none."""
    root = IndexRoot(path)
    root.require()
    published = root.current_id()
    found = [_describe(generation, published) for generation in root.generations()]
    return IndexStatus(path, published, found, list(root.damaged().values()))


def _describe(generation: Generation, published: str | None) -> GenerationStatus:
    manifest = generation.manifest
    state, seal = "unfinished", manifest.seal
    if seal:
        state = "published" if generation.id == published else "kept"
    return GenerationStatus(
        id=generation.id,
        state=state,
        model=manifest.model.name,
        model_id=manifest.model.id,
        precision=manifest.fingerprint.precision,
        max_length=manifest.fingerprint.max_length,
        records=seal.records if seal else 0,
        shards=len(manifest.shards),
        done=done_shards(generation),
        created_at=manifest.created_at,
        sealed_at=seal.sealed_at if seal else None,
        bytes=sum(generation.path.sizes().values()),
        colbert_dim=manifest.colbert_dim,
        nsfw_marks=manifest.nsfw_marks,
    )


@dataclass(slots=True)
class VerifyReport:
    """What rereading found. `reused`: records whose vectors came from an earlier generation;
    `oldest_vector_at`: when the oldest vectors were encoded, in seconds since the epoch; None where
    that is not known.
    """

    index: str
    generation: str
    records: int
    seconds: float
    problems: list[str]
    reused: int = 0
    oldest_vector_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def to_text(self) -> str:
        head = (
            f"{self.index}: generation {self.generation}, {self.records:,} records reread in"
            f" {self.seconds:.1f} s"
        )
        if not self.problems:
            return f"{head}: every table is whole{self._ages()}"
        return "\n".join(
            [
                f"{head}: {len(self.problems)} problems",
                *(f"  {problem}" for problem in self.problems),
            ]
        )

    def _ages(self) -> str:
        if not self.reused or self.oldest_vector_at is None:
            return ""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.oldest_vector_at))
        return (
            f"; the vectors of {self.reused:,} are those of earlier generations, the oldest encoded"
            f" {when}"
        )


def verify(path: str) -> VerifyReport:
    """Reread all that the published generation holds and compare it with the recorded digests."""
    started = time.monotonic()
    generation = IndexRoot(path).current()
    manifest = generation.manifest
    seal = manifest.need_seal()
    problems = damaged_files(generation.path, seal.checksums)
    try:
        generation.load_codec()
    except StorageError as error:
        problems.append(str(error))
    kept = [shard for shard in manifest.shards if shard not in seal.failed_shards]
    read = [read_record(generation.path, shard) for shard in kept]
    records = [record for record, _ in read if record is not None]
    problems += [problem for record, problem in read if record is None]
    if len(records) == len(kept):
        for spec in manifest.specs:
            version, part = seal.versions[spec.name], seal.compacted.get(spec.name)
            if part is None:
                problems += verify_table(generation.path, spec, version, records)
            else:
                problems += verify_compacted(generation, spec, version, part, records)
    seconds = round(time.monotonic() - started, 3)
    oldest = [int(encoding_times(record).min()) for record in records if record.rows]
    return VerifyReport(
        path,
        generation.id,
        seal.records,
        seconds,
        problems,
        reused=sum(record.stats.reused for record in records),
        oldest_vector_at=min(oldest, default=None),
    )
