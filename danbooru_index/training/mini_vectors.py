"""m3-mini's token vectors: learned as means, with axes for popularity and rarity."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from danbooru_index.progress import StepProgress
from danbooru_index.records import Record
from danbooru_index.training.mini_tokenizer import TokenRows, category_token, load_mini_tokenizer
from danbooru_index.training.pairs import Pair

RESERVED = 4  # dimensions that words do not use: two axes, of popularity and of rarity
POPULARITY, RARITY = 0, 1
DAMPING = 2.0
LARGEST_SHARE = 0.5

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class MiniRecipe:
    """Everything that decides the weights, with the data; the defaults are those of m3-mini.

    `means_*`: the token vectors' own training, batches of `means_batch` pairs among `means_others`
    texts more; `gain`: how much more of the mean than of itself a token takes in each layer at
    first; `prior`: how much a category's popularity counts, `token_prior`: that of other tokens;
    `rarity`: the sparse weight of the rarest token at first, `rarity_share`: of its length that
    says so. `*_weight`: how often a pair is drawn, by its category and kind; `popularity`: the
    power of its post count by which it is; `negatives`: texts at random beside each answer.
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


@dataclass(frozen=True, slots=True)
class WeightedPairs:
    """Pairs, and how often each is drawn, [pairs], adding up to 1."""

    pairs: list[Pair]
    weights: Vector


def learn_means(
    folder: Path, training: WeightedPairs, texts: list[str], recipe: MiniRecipe
) -> torch.Tensor:
    """Token vectors [vocabulary, hidden] whose normalised mean over a query is near that over its
    answer, and not over the other answers of a batch or over texts at random (InfoNCE). The last
    dimensions, `RESERVED`, are left at zero.
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    tokenizer = load_mini_tokenizer(folder)

    def ids(texts: list[str], longest: int) -> list[list[int]]:
        tokenizer.enable_truncation(longest)
        return [encoding.ids[1:-1] or [3] for encoding in tokenizer.encode_batch(texts)]

    queries = ids([pair.query for pair in training.pairs], recipe.query_length)
    answers = [
        ids(pair_texts, recipe.passage_length)
        for pair_texts in (pair.pos for pair in training.pairs)
    ]
    others = ids(texts, recipe.passage_length)  # answers of nobody
    vectors = torch.nn.Parameter(torch.randn(tokenizer.get_vocab_size(), recipe.hidden - RESERVED))
    optimizer = torch.optim.AdamW(
        [vectors], lr=recipe.means_lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True
    )
    steps, size = recipe.means_steps, recipe.means_batch
    with contextlib.closing(StepProgress("token vectors", "step", steps)) as progress:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.means_lr * min(1.0, step / 50) * max(0.02, 1 - step / steps)
            chosen = rng.choice(len(queries), size, p=training.weights).tolist()
            drawn = [answers[i][rng.integers(len(answers[i]))] for i in chosen]  # one answer each
            drawn += [others[i] for i in rng.integers(len(others), size=recipe.means_others)]
            scores = _means(vectors, [queries[i] for i in chosen]) @ _means(vectors, drawn).T
            loss = torch.nn.functional.cross_entropy(
                scores / recipe.means_temperature, torch.arange(size)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.add(1)
    return torch.nn.functional.pad(_normed(vectors.detach()), (0, RESERVED))


def with_prior(
    folder: Path,
    vectors: torch.Tensor,
    records: Sequence[Record],
    rows: TokenRows,
    recipe: MiniRecipe,
) -> torch.Tensor:
    """The vectors with how popular their tokens' tags are along an axis.

    People ask for what is drawn often: 【服饰】 before 【画师】. A category's token takes -1 to 1
    of its length for its tags' mean log post count; any other takes `token_prior` times what a
    ridge regression adds to that, at most `LARGEST_SHARE`. Each keeps its direction.
    """
    tokenizer = load_mini_tokenizer(folder)
    by_category: dict[str, list[float]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(_log_posts(record))
    means = {category: sum(logs) / len(logs) for category, logs in by_category.items()}
    low, high = min(means.values(), default=0.0), max(means.values(), default=0.0)  # -1 and 1
    above = np.array([_log_posts(record) - means[record.category] for record in records])  # [texts]
    added = recipe.token_prior * _least_squares(rows, above, len(vectors))
    shares = torch.from_numpy(added.clip(-LARGEST_SHARE, LARGEST_SHARE)).float()
    for category, mean in means.items():
        token = tokenizer.token_to_id(category_token(category))
        if token is not None:
            shares[token] = (2 * mean - low - high) / (high - low) if high > low else 0.0
    return _along(POPULARITY, shares, vectors)


def _log_posts(record: Record) -> float:
    return math.log1p(record.post_count or 0)


def _least_squares(rows: TokenRows, targets: Vector, vocabulary: int) -> Vector:
    """What each token adds to a target, [vocabulary], a text being its tokens' mean."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import lsqr

    words = [row[1:-1] or [3] for row in rows]  # without <s> and </s>; 3: unknown
    lengths = np.array([len(row) for row in words])  # [texts]
    tokens, ends = np.concatenate(words), np.concatenate([[0], np.cumsum(lengths)])
    of_text = csr_matrix(
        (np.repeat(1 / lengths, lengths), tokens, ends), shape=(len(words), vocabulary)
    )
    solution: Vector = lsqr(of_text, targets, damp=DAMPING, iter_lim=200)[0]  # [vocabulary]
    return solution


def _along(axis: int, shares: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Vectors with these shares, [vocabulary] between -1 and 1, of their length along an axis."""
    length, share = math.sqrt(vectors.shape[1]), shares.unsqueeze(1)
    return (1 - share**2).clamp_min(0).sqrt() * vectors + length * share * reserved_axis(
        vectors.shape[1], axis
    )


def with_rarity(vectors: torch.Tensor, rows: TokenRows, recipe: MiniRecipe) -> torch.Tensor:
    """The vectors with each token's rarity, between -1 and 1 times `rarity_share`, along an axis
    that attention does not mix: what the sparse head reads.
    """
    shares = torch.from_numpy(
        recipe.rarity_share * (2 * inverse_frequency(rows, len(vectors)) - 1)
    ).float()
    return _along(RARITY, shares, vectors)


def inverse_frequency(rows: TokenRows, vocabulary: int) -> Vector:
    """Inverse document frequency of each token, [vocabulary]: 0 in every text, 1 in one."""
    seen = np.bincount([token for row in rows for token in set(row)], minlength=vocabulary)  # texts
    return np.log(len(rows) / np.maximum(seen, 1)) / math.log(max(2, len(rows)))


def reserved_axis(hidden: int, which: int) -> torch.Tensor:
    """A unit vector in the reserved dimensions, of mean zero: layer norms keep its direction."""
    axis = torch.zeros(hidden)
    axis[hidden - 2 * which - 2 : hidden - 2 * which] = torch.tensor([-1.0, 1.0]) / math.sqrt(2)
    return axis


def _normed(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(vectors, vectors.shape[-1:])


def _means(vectors: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    """The normalised mean of each row's token vectors, [rows, hidden]."""
    flat = torch.tensor([token for row in rows for token in row])
    places = torch.repeat_interleave(
        torch.arange(len(rows)), torch.tensor([len(row) for row in rows])
    )
    sums = torch.zeros(len(rows), vectors.shape[1]).index_add(0, places, _normed(vectors[flat]))
    return torch.nn.functional.normalize(sums, dim=-1)


def identity_without_rarity(hidden: int) -> torch.Tensor:
    """The identity but for the axis of rarity, which is left out."""
    axis = reserved_axis(hidden, RARITY)
    return torch.eye(hidden) - torch.outer(axis, axis)
