"""What travels between tokenizer, encoder and tables, in flat buffers; what an encoder is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WIDENED_AT_ONCE = 1 << 17  # values
HALF_BIAS = np.float32(2.0**112)  # single precision's exponents are 112 higher


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens of N texts: `token_ids` int32 [T] flat, `lengths` int32 [N]; T is the sum of
    `lengths`.

    `special`: the ids of the tokenizer's special tokens, which never become sparse entries.
    """

    token_ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    special: tuple[int, ...]
    truncated: int = 0

    @property
    def tokens(self) -> int:
        return int(self.token_ids.size)

    def take(self, rows: npt.NDArray[np.int64]) -> TokenBatch:
        """The given texts, in their order."""
        lengths = self.lengths.astype(np.int64)
        return TokenBatch(
            self.token_ids[ragged_take(lengths, rows)], self.lengths[rows], self.special
        )

    def rows(self, start: int, stop: int) -> TokenBatch:
        """The texts `start` to `stop`."""
        offsets = np.concatenate(([0], np.cumsum(self.lengths)))  # [N + 1], in token_ids
        return TokenBatch(
            self.token_ids[offsets[start] : offsets[stop]], self.lengths[start:stop], self.special
        )


@dataclass(frozen=True, slots=True)
class Matrices:
    """The matrices of N texts, one after the other: `vectors` [sum(lengths), C], `lengths` [N]."""

    vectors: Array
    lengths: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The three outputs for N texts, in their order.

    `dense` [N, D], L2-normalised. `sparse_ids` int32 and `sparse_weights` float32, flat,
    `sparse_lengths` [N]: each row's token ids ascending and unique, weights positive. `colbert`
    [sum(colbert_lengths), C], rows L2-normalised, without the first token. `non_finite`: rows that
    stayed non-finite even in fp32.
    """

    dense: Array
    sparse_ids: npt.NDArray[np.int32]
    sparse_weights: npt.NDArray[np.float32]
    sparse_lengths: npt.NDArray[np.int64]
    colbert: Array
    colbert_lengths: npt.NDArray[np.int64]
    non_finite: npt.NDArray[np.int64]

    def keep(self, mask: npt.NDArray[np.bool_]) -> Embeddings:
        """The rows where `mask` [N] is true."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: npt.NDArray[np.int64]) -> Embeddings:
        """The given rows, in their order; none of them may be one that is not finite."""
        sparse = ragged_take(self.sparse_lengths, rows)  # positions of their entries
        return Embeddings(
            dense=self.dense[rows],
            sparse_ids=self.sparse_ids[sparse],
            sparse_weights=self.sparse_weights[sparse],
            sparse_lengths=self.sparse_lengths[rows],
            colbert=self.colbert[ragged_take(self.colbert_lengths, rows)],
            colbert_lengths=self.colbert_lengths[rows],
            non_finite=np.empty(0, np.int64),
        )

    @property
    def matrices(self) -> Matrices:
        """The ColBERT matrices of all texts."""
        return Matrices(self.colbert, self.colbert_lengths)

    def colbert_row(self, row: int) -> Array:
        """The matrix of one text, [tokens - 1, C]."""
        stop = int(self.colbert_lengths[: row + 1].sum())
        return self.colbert[stop - int(self.colbert_lengths[row]) : stop]

    def sparse_row(self, row: int) -> dict[int, float]:
        """The weights of one text by token id."""
        stop = int(self.sparse_lengths[: row + 1].sum())
        span = slice(stop - int(self.sparse_lengths[row]), stop)
        return dict(
            zip(self.sparse_ids[span].tolist(), self.sparse_weights[span].tolist(), strict=True)
        )


def to_float32(half: Array) -> npt.NDArray[np.float32]:
    """Finite half floats in single precision, exactly: by integer arithmetic, three times as fast
    as `astype`, which NumPy does one value at a time.
    """
    if half.dtype != np.float16:
        return np.asarray(half, np.float32)
    out = np.empty(half.shape, np.float32)
    rows = max(1, WIDENED_AT_ONCE // max(1, half.shape[-1])) if half.ndim > 1 else WIDENED_AT_ONCE
    for start in range(0, len(half), rows):  # blocks that stay in a core's cache
        bits = np.ascontiguousarray(half[start : start + rows]).view(np.int16).astype(np.int32)
        bits <<= 13  # the fraction and the exponent to where single precision has them
        bits &= np.int32(-0x70000001)  # 1 sign, 3 zeros, 5 exponent bits, the fraction
        np.multiply(bits.view(np.float32), HALF_BIAS, out=out[start : start + rows])
    return out


def ragged_take(
    counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Flat positions of the chosen `rows` of a ragged array; row i holds `counts[i]` values."""
    starts = np.cumsum(counts) - counts  # of each row in the flat array
    taken = counts[rows]
    before = np.cumsum(taken) - taken  # values of the rows chosen before each
    return np.repeat(starts[rows] - before, taken) + np.arange(int(taken.sum()))


def merge(mask: npt.NDArray[np.bool_], inside: Embeddings, outside: Embeddings) -> Embeddings:
    """The embeddings of N texts, from those where `mask` [N] is true and those of the others."""
    places = np.empty(len(mask), np.int64)  # of each row, `inside` and then `outside`
    places[mask] = np.arange(int(mask.sum()))
    places[~mask] = len(inside.dense) + np.arange(int((~mask).sum()))
    both = (inside, outside)
    joined = Embeddings(
        **{
            name: np.concatenate([getattr(one, name) for one in both])
            for name in Embeddings.__slots__
        }
    ).take(places)
    return replace(joined, non_finite=np.flatnonzero(~mask)[outside.non_finite])


def replace_rows(
    embeddings: Embeddings, rows: npt.NDArray[np.int64], again: list[tuple[Embeddings, bool]]
) -> Embeddings:
    """`embeddings` with recomputed rows; rows still not finite become zeros, and are listed."""
    replaced = {int(row): one for row, (one, finite) in zip(rows, again, strict=True) if finite}
    dense, colbert = embeddings.dense.copy(), embeddings.colbert.copy()
    stops = np.cumsum(embeddings.colbert_lengths)  # [N]: where each matrix ends
    sparse = [embeddings.sparse_row(row) for row in range(len(dense))]
    for row in map(int, rows):
        span = slice(int(stops[row] - embeddings.colbert_lengths[row]), int(stops[row]))
        one = replaced.get(row)
        dense[row], colbert[span] = (one.dense[0], one.colbert) if one else (0, 0)
        sparse[row] = one.sparse_row(0) if one else {}
    return Embeddings(
        dense=dense,
        sparse_ids=np.array([i for row in sparse for i in row], dtype=np.int32),
        sparse_weights=np.array([w for row in sparse for w in row.values()], dtype=np.float32),
        sparse_lengths=np.array([len(row) for row in sparse], dtype=np.int64),
        colbert=colbert,
        colbert_lengths=embeddings.colbert_lengths,
        non_finite=np.array([int(row) for row in rows if int(row) not in replaced], dtype=np.int64),
    )


@dataclass(slots=True)
class EncoderStats:
    """What an encoder has done: `tokens` of the texts, `computed` of them (equal rows once),
    `processed` on the device (with empty slots and tails), seconds in the forward pass, useful
    floating-point operations.
    """

    tokens: int = 0
    computed: int = 0
    processed: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    recomputed: int = 0


class TextEncoder(Protocol):
    """What the pipeline needs of a model: tokens in, three outputs out."""

    tokens_per_batch: int

    @property
    def peak_memory(self) -> int: ...

    def call_s(self, max_length: int) -> float: ...

    def encode(
        self,
        batch: TokenBatch,
        on_rows: Callable[[int], None] | None = None,
        stats: EncoderStats | None = None,
    ) -> Embeddings: ...
