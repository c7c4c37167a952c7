"""How token sequences share a device call: short ones in blocks, almost no padding.

All of it is index arithmetic on the CPU; `packed_model` runs the calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import ragged_take

MOST_UNITS = 65_535  # a call: a CUDA grid has no more rows, and FlashAttention a row a text
TAIL = 32
TAIL_STEPS = ((64, 1), (512, 32), (1 << 62, 128))
# of a slot: a layer's time by how attention is done; 0: by length
BLOCK_COSTS = {32: 1.0, 64: 1.04, 128: 1.1, 0: 1.2}


@dataclass(frozen=True, slots=True)
class Packing:
    """Texts in the order in which they are encoded, in a stream of slots: what calls are cut from.

    `order` [n]: which text each is; `ids` int32 [T] and `lengths` [n]: theirs; `starts` [n]: the
    slot where each begins. Units, which no call divides: unit u has the slots from `bounds[u]` and
    the texts from `firsts[u]`. The first `blocks` units are blocks of `block` slots, filled with
    whole texts; each of the others is one text.
    """

    order: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    blocks: int
    block: int

    @property
    def slots(self) -> int:
        return int(self.bounds[-1])


@dataclass(frozen=True, slots=True)
class PackedCall:
    """One device call: `ids` and `positions` int64 [P], padding where no text is; `lengths` and
    `starts` of its texts [n]; the slot of each of their tokens, `places` [T]. The first `blocks` x
    `block` slots are blocks, then come `spans`, runs of (texts, length), one text after the other.
    `whole`: of the size for which layers can be fused.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    blocks: int
    block: int
    whole: bool = False

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return len(self.places)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        lengths = self.lengths[self.starts >= self.blocks * self.block]
        cuts = np.flatnonzero(np.diff(lengths, prepend=-1))  # where another length begins
        return tuple(
            zip(np.diff([*cuts, len(lengths)]).tolist(), lengths[cuts].tolist(), strict=True)
        )

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The spans, and the tail as more texts."""
        used = self.blocks * self.block + sum(rows * length for rows, length in self.spans)
        rows, rest = divmod(len(self.ids) - used, TAIL)  # padding, cut into texts of TAIL slots
        return (*self.spans, *(part for part in ((rows, TAIL), (1, rest)) if part[0] * part[1]))


def pack(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], blocks: tuple[int, ...]
) -> Packing:
    """Order texts (`ids` flat) for packed calls: those that fit in blocks of the size that costs
    least, the others by length. A size of 0: all by length.
    """
    by_length = np.argsort(lengths, kind="stable")  # [n], shortest first
    counts = np.bincount(lengths, minlength=max(blocks) + 1)  # counts[length]: texts
    block, patterns = min(
        ((block, _fill(counts, block)) for block in blocks), key=lambda one: _cost(counts, *one)
    )
    short = int(counts[: block + 1].sum())  # texts that go into blocks
    filled, starts, sizes = _place(counts[: block + 1], patterns, block)
    order = np.concatenate((by_length[filled], by_length[short:]))  # [n]
    rest = lengths[by_length[short:]]  # of texts that are a unit by themselves
    bounds = np.concatenate(([0], np.cumsum(np.concatenate((np.full(len(sizes), block), rest)))))
    firsts = np.concatenate(([0], np.cumsum(np.concatenate((sizes, np.ones(len(rest), np.int64))))))
    starts = np.concatenate((starts, bounds[len(sizes) : -1]))  # [n], in slots
    picked = ids[ragged_take(lengths, order)]  # [T]
    return Packing(order, picked, lengths[order], starts, bounds, firsts, len(sizes), block)


def _fill(counts: npt.NDArray[np.int64], block: int) -> list[tuple[list[int], int]]:
    """Combinations of lengths that fill blocks, and how many blocks each; `counts[length]` texts
    there are.

    Into each goes the longest that leaves nothing, or room for the shortest, else the longest that
    fits.
    """
    left = {
        length: count
        for length, count in enumerate(counts[: block + 1].tolist())
        if length and count
    }
    patterns = []  # (lengths that fill one block, how many such blocks)
    while left:
        pattern: list[int] = []
        room, fitting = block, sorted(left, reverse=True)  # slots left; lengths that still fit
        while fitting := [n for n in fitting if n <= room and pattern.count(n) < left[n]]:
            pattern.append(
                next((n for n in fitting if n == room or room - n >= fitting[-1]), fitting[0])
            )
            room -= pattern[-1]
        times = min(left[n] // pattern.count(n) for n in pattern)  # until a length runs out
        patterns.append((pattern, times))
        for n in pattern:
            left[n] -= times
        left = {n: count for n, count in left.items() if count}
    return patterns


def _cost(
    counts: npt.NDArray[np.int64], block: int, patterns: list[tuple[list[int], int]]
) -> float:
    longer = int((counts[block + 1 :] * np.arange(block + 1, len(counts))).sum())
    return (
        sum(times for _, times in patterns) * block * BLOCK_COSTS[block] + longer * BLOCK_COSTS[0]
    )


def _place(
    counts: npt.NDArray[np.int64], patterns: list[tuple[list[int], int]], block: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Texts of ascending lengths put into blocks: (texts, the slot of each, texts a block)."""
    following = np.cumsum(counts) - counts  # the next unused text of each length
    parts: list[tuple[npt.NDArray[np.int64], ...]] = [(np.empty(0, np.int64),) * 3]
    done = 0  # blocks so far
    for pattern, times in patterns:
        columns = []
        for length in pattern:
            columns.append(following[length] + np.arange(times))  # one text for each block
            following[length] += times
        begins = block * (done + np.arange(times))[:, None] + np.cumsum([0, *pattern[:-1]])
        parts.append((np.stack(columns, 1).ravel(), begins.ravel(), np.full(times, len(pattern))))
        done += times
    texts, starts, sizes = (np.concatenate(some) for some in zip(*parts, strict=True))
    return texts, starts, sizes


def pack_calls(
    packing: Packing, budget: int, padding_id: int, fill_from: float = math.inf
) -> Iterator[PackedCall]:
    """Cut a packing into calls of up to `budget` slots; a unit that is longer goes alone. Calls of
    `fill_from` slots or more are filled up: `whole`.
    """
    bounds = packing.bounds
    unit = 0  # the first of the next call
    while unit < len(bounds) - 1:
        stop = max(unit + 1, int(np.searchsorted(bounds, bounds[unit] + budget, side="right")) - 1)
        stop = min(stop, unit + MOST_UNITS)
        slots = int(bounds[stop] - bounds[unit])  # without the tail
        whole = fill_from <= slots <= budget
        yield _call(packing, unit, stop, padding_id, budget if whole else padded(slots), whole)
        unit = stop


def _call(
    packing: Packing, unit: int, stop: int, padding_id: int, slots: int, whole: bool
) -> PackedCall:
    """Slots of one call; XLM-R numbers positions from `padding_id` + 1, skipping padding."""
    rows = slice(int(packing.firsts[unit]), int(packing.firsts[stop]))  # its texts
    lengths = packing.lengths[rows]  # [n]
    starts = packing.starts[rows] - packing.bounds[unit]  # [n], from this call's first slot
    first = np.cumsum(lengths) - lengths  # [n]: where each text begins in `tokens`
    places = np.repeat(starts - first, lengths) + np.arange(int(lengths.sum()))  # [T]: slots
    at = int(packing.lengths[: rows.start].sum())  # tokens of the calls before
    tokens = packing.ids[at : at + len(places)]
    ids = np.full(slots, padding_id, dtype=np.int64)  # [P]
    positions = np.full(len(ids), padding_id, dtype=np.int64)  # [P]
    ids[places] = tokens
    real = tokens != padding_id  # [T]
    counted = real.cumsum()  # over the whole call; each text begins again below
    positions[places] = (
        counted - np.repeat(counted[first] - real[first], lengths)
    ) * real + padding_id
    blocks = min(max(packing.blocks - unit, 0), stop - unit)
    return PackedCall(ids, positions, lengths, starts, places, blocks, packing.block, whole)


def padded(tokens: int) -> int:
    """Tokens rounded up, so that few matrix shapes occur and a library's plans are used again."""
    step = next(step for limit, step in TAIL_STEPS if tokens <= limit)  # coarser when longer
    return -(-tokens // step) * step  # rounded up
