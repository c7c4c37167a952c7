"""Samples of the input, the same ones every time: for the self-check, for estimates, for fitting a projection."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from danbooru_index.ingest.shards import Shard, read_shard

SPREAD = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A record of the input that must be in the tables."""

    id: str
    text: str
    shard: str


def choose_samples(shards: list[Shard], count: int, spread: int = SPREAD) -> list[Sample]:
    """Up to `count` records, from up to `spread` shards all over the input."""
    return [Sample(record["id"], record["text"], shard) for shard, record in _choose(shards, count, spread)]


def choose_questions(shards: list[Shard], count: int, spread: int = SPREAD) -> list[str]:
    """Up to `count` texts as a person would type them: an explanation, an alias, or the tag's words."""
    chooser = random.Random(1)
    questions = []
    for _, record in _choose(shards, count, spread):
        forms = [(record["tag"] or "").replace("_", " "), *(record["aliases"] or [])]
        forms.append(record["text"].partition(" - ")[2])
        questions.append(chooser.choice([form for form in forms if form.strip()] or [record["text"]]))
    return questions


def _choose(shards: list[Shard], count: int, spread: int) -> list[tuple[str, dict[str, Any]]]:
    chooser = random.Random(0)
    found: list[tuple[str, dict[str, Any]]] = []
    chosen = range(0, len(shards), max(1, len(shards) // spread))[:spread]
    others = [place for place in range(len(shards)) if place not in chosen]
    for number, place in enumerate([*chosen, *others]):
        if number >= len(chosen) and found:  # the others are for an input that is nearly all rejects
            break
        records, _ = read_shard(shards[place])
        rows = sorted(chooser.sample(range(records.num_rows), min(records.num_rows, -(-count // len(chosen)))))
        found += [(shards[place].id, record) for record in records.take(pa.array(rows, pa.int64())).to_pylist()]
    return found[:count]
