"""The recipe of m3-mini: everything that decides its weights, with the data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MiniRecipe:
    """Everything that decides the weights, with the data; the defaults are those of m3-mini.

    `means_*`: the token vectors' own training, batches of `means_batch` pairs among `means_others` texts more; `gain`: how
    much more of the mean than of itself a token takes in each layer at first; `prior`: how much a category's popularity
    counts, `token_prior`: that of other tokens; `rarity`: the sparse weight of the rarest token at first,
    `rarity_share`: of its length that says so.
    `*_weight`: how often a pair is drawn, by its category and kind; `popularity`: the power of its post count by which it
    is; `negatives`: texts at random beside each answer.
    """

    vocabulary: int = 20_000  # and a token for each category
    hidden: int = 256
    layers: int = 2
    heads: int = 4
    intermediate: int = 1024
    positions: int = 514
    gain: float = 4.0
    prior: float = 12.0
    token_prior: float = 0.07
    rarity: float = 0.3
    rarity_share: float = 0.35
    means_steps: int = 4500
    means_batch: int = 1024
    means_others: int = 1024
    means_lr: float = 0.06
    means_temperature: float = 0.05
    query_length: int = 24
    passage_length: int = 40
    artist_weight: float = 0.1
    general_weight: float = 4.0
    own_name_weight: float = 0.5
    popularity: float = 0.2
    pairs: int = 20_000
    negatives: int = 2
    batch_size: int = 256
    lr: float = 1e-5
    temperature: float = 0.05
    seed: int = 0
