"""How a batch is encoded: equal texts once, in an order that packs well, and the way back."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array, Embeddings, TokenBatch, ragged_take
from danbooru_index.model.packing import PackedCall, Packing, pack, pack_calls, padded

FEW_TOKENS = 256  # a query alone is not padded to a block
MIN_CALLS_TO_FILL = 8  # in a batch: compiling layers for full calls takes the time of two


class BatchPlan:
    """How a batch is encoded: equal rows once, in an order that packs well, and the way back to the
    input's order: which of the device's vectors each of the input's is (`ways`).
    """

    def __init__(self, batch: TokenBatch, blocks: tuple[int, ...]) -> None:
        self.lengths = batch.lengths.astype(np.int64)  # [rows]
        self.tokens = batch.tokens
        self._special = np.array(batch.special, np.int32)
        offsets = np.concatenate(([0], np.cumsum(self.lengths)))[:-1]  # [rows], in token_ids
        self._unique_of = np.zeros(len(self.lengths), dtype=np.int64)  # [rows] -> unique row
        ids: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
        unique_lengths: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        done = 0
        order = np.argsort(self.lengths, kind="stable")  # rows of one length side by side
        present, counts = np.unique(self.lengths, return_counts=True)
        runs = np.split(order, np.cumsum(counts))[:-1]
        for length, rows in zip(present.tolist(), runs, strict=True):
            matrix = batch.token_ids[offsets[rows][:, None] + np.arange(length)]  # [rows, length]
            keys = np.ascontiguousarray(matrix).view(np.dtype((np.void, 4 * length))).ravel()
            _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
            ids.append(matrix[first].ravel())  # equal texts once
            self._unique_of[rows] = done + inverse
            unique_lengths.append(np.full(len(first), length, dtype=np.int64))
            done += len(first)
        self.unique_rows = done
        self._ids, self.unique_lengths = np.concatenate(ids), np.concatenate(unique_lengths)
        self.unique_tokens = len(self._ids)
        self.vectors = self.unique_tokens - self.unique_rows  # ColBERT has none for <s>
        self.budget = 0
        self.calls: list[PackedCall] = []
        self.pack(blocks if self.unique_tokens > FEW_TOKENS else (0,))

    def pack(self, blocks: tuple[int, ...]) -> None:
        """Order the unique rows for packed calls, in blocks of one of these sizes."""
        self.packing: Packing = pack(self._ids, self.unique_lengths, blocks)
        place = np.empty(self.unique_rows, dtype=np.int64)  # [unique]: its place on the device
        place[self.packing.order] = np.arange(self.unique_rows)
        taken = place[self._unique_of]  # [rows]
        self.ways = {"dense": taken, "colbert": ragged_take(self.packing.lengths - 1, taken)}

    def calls_of(
        self, budget: int, streams: int, padding_id: int, min_fill_ratio: float
    ) -> list[PackedCall]:
        """The device calls at a token budget, planned once; where several run at once, as many as
        end together.

        They depend on nothing but the batch, so that it comes out the same whenever it is encoded.
        """
        if self.budget == budget:
            return self.calls
        self.budget = budget
        if budget <= FEW_TOKENS:
            self.pack((0,))
        slots, fill_from = self.packing.slots, math.inf
        if min_fill_ratio < math.inf and slots >= MIN_CALLS_TO_FILL * budget:
            fill_from = min_fill_ratio * budget
        elif slots > budget:
            rounds = -(-slots // (budget * streams))  # of as many calls as there are streams
            budget = min(budget, padded(-(-slots // (rounds * streams))))
        self.calls = list(pack_calls(self.packing, budget, padding_id, fill_from))
        return self.calls

    def assemble(self, out: dict[str, Array]) -> tuple[Embeddings, npt.NDArray[np.int64]]:
        """Device results of the unique rows, in the order of the last `pack`, but vectors by `ways`
        -> an `Embeddings` in input order, and the rows that are not finite.
        """
        taken = self.ways["dense"]
        kept = (out["sparse_weights"] > 0) & ~np.isin(out["sparse_ids"], self._special)
        rows = np.repeat(np.arange(self.unique_rows), self.packing.lengths)  # [T]: of each token
        counts = np.bincount(rows[kept], minlength=self.unique_rows)  # entries of each unique row
        chosen = ragged_take(counts, taken)  # [entries], in the input's order
        embeddings = Embeddings(
            dense=out["dense"],
            sparse_ids=out["sparse_ids"][kept][chosen],
            sparse_weights=out["sparse_weights"][kept][chosen],
            sparse_lengths=counts[taken],
            colbert=out["colbert"],
            colbert_lengths=self.lengths - 1,
            non_finite=np.empty(0, np.int64),
        )
        return embeddings, np.flatnonzero(~out["finite"][taken])
