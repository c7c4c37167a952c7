"""Hard negatives of training pairs, mined from an index with the model that built it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from danbooru_index.choices import Mode
from danbooru_index.config import Filter
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader
from danbooru_index.progress import StepProgress
from danbooru_index.search.batch import rank_many
from danbooru_index.search.query_encoder import QueryEncoder
from danbooru_index.search.retriever import EncodedQuery
from danbooru_index.training.finetune_config import FinetuneConfig
from danbooru_index.training.pairs import Pair, bare, normal

QUERIES_PER_MINING = 1024


@dataclass(frozen=True, slots=True)
class Mining:
    """Hard negatives: `count` a query, `share` from the index's answers of these ranks."""

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
    """Fill each pair up to `mining.count` negatives from an index, by the dense answers of the
    model that built it.

    Never a known positive: not a text of the same query in any pair, nor one that differs only by
    its explanation.
    """
    rng = random.Random(mining.seed)
    texts = reader.texts()
    known: dict[str, set[str]] = {}
    for pair in pairs:
        known.setdefault(normal(pair.query), set()).update(bare(text) for text in pair.pos)
    first, last = mining.ranks
    for start in range(0, len(pairs), QUERIES_PER_MINING):
        some = pairs[start : start + QUERIES_PER_MINING]
        answers = rank_many(
            reader,
            encode([pair.query for pair in some]),
            Mode.DENSE,
            last,
            wanted=Filter(nsfw=True),
        )
        for pair, rows in zip(some, answers, strict=True):
            positive = known[normal(pair.query)]
            hard = [
                texts[row] for row in rows[first - 1 :].tolist() if bare(texts[row]) not in positive
            ]
            missing = max(0, mining.count - len(pair.neg))
            pair.neg += rng.sample(hard, min(len(hard), round(mining.share * missing)))
            pair.neg += _others(texts, positive, max(0, mining.count - len(pair.neg)), rng)
        on_pairs(len(some))


def _others(texts: list[str], positive: set[str], count: int, rng: random.Random) -> list[str]:
    """So many texts at random that are no positive; fewer where there are hardly any."""
    drawn = (texts[rng.randrange(len(texts))] for _ in range(20 * count))
    found = [text for text in drawn if bare(text) not in positive]
    return found[:count]


def mine(config: FinetuneConfig, pairs: list[Pair]) -> list[Pair]:
    """The pairs with negatives from the index, up to `group_size` - 1 each."""
    generation = IndexRoot(config.index or "").current()
    encoder = QueryEncoder(generation, device=config.device)
    mining = Mining(config.group_size - 1, config.ranks, config.mined_share, config.seed)
    with contextlib.closing(StepProgress("mining negatives", "pair", len(pairs))) as progress:
        add_negatives(pairs, encoder, GenerationReader(generation), mining, progress.add)
    return pairs


def model_of_index(path: str) -> str:
    """The model that built an index, by the place where it is."""
    return IndexRoot(path).current().manifest.model.place
