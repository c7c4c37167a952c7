"""Hard negatives of training pairs, mined from an index with the model that built it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from danbooru_index.config import Filter, Mode
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.batch import rank_many
from danbooru_index.search.retriever import EncodedQuery
from danbooru_index.training.pairs import Pair, bare, normal

QUERIES_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Mining:
    """Hard negatives: `count` a query, `share` of them from the index's answers of these ranks, the others at random."""

    count: int
    ranks: tuple[int, int] = (2, 20)
    share: float = 0.7
    seed: int = 0


def add_negatives(
    pairs: Sequence[Pair],
    encode: Callable[[list[str]], list[EncodedQuery]],
    reader: GenerationReader,
    mining: Mining,
    on_pairs: Callable[[int], None],
) -> None:
    """Fill each pair up to `mining.count` negatives from an index, by the dense answers of the model that built it.

    Never a known positive: not a text of the same query in any pair, nor one that differs only by its explanation.
    """
    chance = random.Random(mining.seed)
    texts = reader.texts()
    known: dict[str, set[str]] = {}
    for pair in pairs:
        known.setdefault(normal(pair.query), set()).update(bare(text) for text in pair.pos)
    first, last = mining.ranks
    for start in range(0, len(pairs), QUERIES_AT_ONCE):
        some = pairs[start : start + QUERIES_AT_ONCE]
        answers = rank_many(reader, encode([pair.query for pair in some]), Mode.DENSE, last, wanted=Filter(nsfw=True))
        for pair, rows in zip(some, answers, strict=True):
            positive = known[normal(pair.query)]
            hard = [texts[row] for row in rows[first - 1 :].tolist() if bare(texts[row]) not in positive]
            missing = max(0, mining.count - len(pair.neg))
            pair.neg += chance.sample(hard, min(len(hard), round(mining.share * missing)))
            pair.neg += _others(texts, positive, max(0, mining.count - len(pair.neg)), chance)
        on_pairs(len(some))


def _others(texts: list[str], positive: set[str], count: int, chance: random.Random) -> list[str]:
    """So many texts at random that are no positive; fewer where there are hardly any."""
    drawn = (texts[chance.randrange(len(texts))] for _ in range(20 * count))
    found = [text for text in drawn if bare(text) not in positive]
    return found[:count]
