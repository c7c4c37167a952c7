"""Samples of the input, always the same: for the self-check, estimates, projections.

Every shard that any of them needs is read once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from danbooru_index.ingest.shards import Shard, read_shard

CHECKED = 16  # records that must find themselves before an index is published
ESTIMATE_TEXTS = 2000
PROJECTION_RECORDS, PROJECTION_QUESTIONS = 8192, 1000
SPREAD, PROJECTION_SPREAD = 8, 64  # shards that a sample comes from

Found = list[tuple[str, dict[str, Any]]]  # (shard id, record) in input order


@dataclass(frozen=True, slots=True)
class Sample:
    """A record of the input that must be in the tables."""

    id: str
    text: str
    shard: str


@dataclass(frozen=True, slots=True)
class InputSamples:
    """What is drawn from the input before a build: records for the self-check; texts whose length
    is measured; texts that a projection is fitted and measured on, and questions about them (none
    where nothing is projected).
    """

    checked: tuple[Sample, ...]
    estimate: tuple[str, ...]
    projection: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


@dataclass(slots=True)
class Draw:
    """Up to `count` records from up to `spread` shards, always the same ones."""

    count: int
    spread: int
    shards: int
    found: Found = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def places(self) -> range:
        """The shards that are asked, by their number."""
        return range(0, self.shards, max(1, self.shards // self.spread))[: self.spread]

    def take(self, shard: Shard, records: pa.Table) -> None:
        """Draw from one of these shards."""
        most = -(-self.count // len(self.places))
        rows = sorted(self.rng.sample(range(records.num_rows), min(records.num_rows, most)))
        self.found += [
            (shard.id, record) for record in records.take(pa.array(rows, pa.int64())).to_pylist()
        ]

    def result(self) -> Found:
        return self.found[: self.count]


def draw_samples(shards: Sequence[Shard], *, projected: bool = False) -> InputSamples:
    """All samples that a build needs, in one reading of the shards they come from; `projected`:
    also those for a ColBERT projection. Raises `InputError` for a shard that cannot be read.
    """
    sizes = [(CHECKED, SPREAD), (ESTIMATE_TEXTS, SPREAD)]
    sizes += (
        [(PROJECTION_RECORDS, PROJECTION_SPREAD), (PROJECTION_QUESTIONS, PROJECTION_SPREAD)]
        if projected
        else []
    )
    draws = [Draw(count, spread, len(shards)) for count, spread in sizes]
    _draw(shards, draws)
    checked, estimate, *others = (draw.result() for draw in draws)
    return InputSamples(
        tuple(Sample(record["id"], record["text"], shard) for shard, record in checked),
        _texts(estimate),
        _texts(others[0]) if others else (),
        as_questions(others[1]) if others else (),
    )


def _draw(shards: Sequence[Shard], draws: Sequence[Draw]) -> None:
    for place in sorted({place for draw in draws for place in draw.places}):
        records, _ = read_shard(shards[place])
        for draw in draws:
            if place in draw.places:
                draw.take(shards[place], records)
    for draw in draws:  # the other shards are for an input that is nearly all rejects
        others = [shard for place, shard in enumerate(shards) if place not in draw.places]
        while not draw.found and others:
            draw.take(others[0], read_shard(others.pop(0))[0])


def _texts(found: Found) -> tuple[str, ...]:
    return tuple(record["text"] for _, record in found)


def as_questions(found: Found) -> tuple[str, ...]:
    """Texts as a person would type them: an explanation, an alias, or the tag's words."""
    rng = random.Random(1)
    questions = []
    for _, record in found:
        forms = [(record["tag"] or "").replace("_", " "), *(record["aliases"] or [])]
        forms.append(record["text"].partition(" - ")[2])
        questions.append(rng.choice([form for form in forms if form.strip()] or [record["text"]]))
    return tuple(questions)
