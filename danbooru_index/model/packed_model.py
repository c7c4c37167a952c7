"""BGE-M3's forward pass on packed tokens: texts of any length one after the other, next to nothing padded.

XLM-R's own layers do the work on [tokens, width] matrices; only attention knows where a text ends: by FlashAttention's
variable-length kernel on a GPU that has it, else in blocks of 32 to 128 tokens filled with whole texts, under a mask. So every
matrix product is as large as the token budget, whatever the lengths are. Called by `encoder`, which plans the calls.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Encoding, ragged_take
from danbooru_index.model import onednn as fusion
from danbooru_index.model.device import cpu_has_avx512_bf16_alone

if TYPE_CHECKING:
    import torch

Attend = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Attention = Callable[["PackedCall", "torch.Tensor"], Attend]

WORTH_FILLING = {
    4: 0.5,
    2: 0.9,
}  # share of a whole call, by a value's bytes, from which its empty slots cost less than they save
LONGEST_IN_TWO = 512  # tokens: 16 heads have 8 MB of scores for such a text
MOST_UNITS = 65_535  # a call: a CUDA grid has no more rows, and FlashAttention a row a text
QUESTION_VECTORS = 256
GEMMS = 8
TAIL = 32
TAIL_STEPS = ((64, 1), (512, 32), (1 << 62, 128))
BLOCK_COSTS = {32: 1.0, 64: 1.04, 128: 1.1, 0: 1.2}  # of a slot: a layer's time by how attention is done; 0: by length


@dataclass(frozen=True, slots=True)
class Packing:
    """Texts in the order in which they are encoded, in a stream of slots: what calls are cut from.

    `order` [n]: which text each is; `ids` int32 [T] and `lengths` [n]: theirs; `starts` [n]: the slot where each begins.
    Units, which no call divides: unit u has the slots from `bounds[u]` and the texts from `firsts[u]`. The first `blocks`
    units are blocks of `block` slots, filled with whole texts; each of the others is one text.
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
    """One device call: `ids` and `positions` int64 [P], padding where no text is; `lengths` and `starts` of its texts
    [n]; the slot of each of their tokens, `places` [T]. The first `blocks` x `block` slots are blocks, then come
    `spans`, runs of (texts, length), one text after the other. `whole`: of the size for which layers can be fused."""

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
        cuts = np.flatnonzero(np.diff(lengths, prepend=-1))
        return tuple(zip(np.diff([*cuts, len(lengths)]).tolist(), lengths[cuts].tolist(), strict=True))

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The spans, and the tail as more texts."""
        used = self.blocks * self.block + sum(rows * length for rows, length in self.spans)
        rows, rest = divmod(len(self.ids) - used, TAIL)
        return (*self.spans, *(part for part in ((rows, TAIL), (1, rest)) if part[0] * part[1]))


def pack(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], blocks: tuple[int, ...]) -> Packing:
    """Order texts (`ids` flat) for packed calls: those that fit in blocks of the size that costs least, the others by
    length. A size of 0: all by length."""
    by_length = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=max(blocks) + 1)
    block, patterns = min(((block, _fill(counts, block)) for block in blocks), key=lambda one: _cost(counts, *one))
    short = int(counts[: block + 1].sum())
    filled, starts, sizes = _place(counts[: block + 1], patterns, block)
    order = np.concatenate((by_length[filled], by_length[short:]))
    rest = lengths[by_length[short:]]
    bounds = np.concatenate(([0], np.cumsum(np.concatenate((np.full(len(sizes), block), rest)))))
    firsts = np.concatenate(([0], np.cumsum(np.concatenate((sizes, np.ones(len(rest), np.int64))))))
    starts = np.concatenate((starts, bounds[len(sizes) : -1]))
    return Packing(order, ids[ragged_take(lengths, order)], lengths[order], starts, bounds, firsts, len(sizes), block)


def _fill(counts: npt.NDArray[np.int64], block: int) -> list[tuple[list[int], int]]:
    """Combinations of lengths that fill blocks, and how many blocks each; `counts[length]` texts there are.

    Into each goes the longest that leaves nothing, or room for the shortest, else the longest that fits.
    """
    left = {length: count for length, count in enumerate(counts[: block + 1].tolist()) if length and count}
    patterns = []
    while left:
        pattern: list[int] = []
        room, fitting = block, sorted(left, reverse=True)
        while fitting := [n for n in fitting if n <= room and pattern.count(n) < left[n]]:
            pattern.append(next((n for n in fitting if n == room or room - n >= fitting[-1]), fitting[0]))
            room -= pattern[-1]
        times = min(left[n] // pattern.count(n) for n in pattern)
        patterns.append((pattern, times))
        for n in pattern:
            left[n] -= times
        left = {n: count for n, count in left.items() if count}
    return patterns


def _cost(counts: npt.NDArray[np.int64], block: int, patterns: list[tuple[list[int], int]]) -> float:
    longer = int((counts[block + 1 :] * np.arange(block + 1, len(counts))).sum())
    return sum(times for _, times in patterns) * block * BLOCK_COSTS[block] + longer * BLOCK_COSTS[0]


def _place(
    counts: npt.NDArray[np.int64], patterns: list[tuple[list[int], int]], block: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Texts of ascending lengths put into blocks: (texts, the slot of each, texts a block)."""
    following = np.cumsum(counts) - counts
    parts: list[tuple[npt.NDArray[np.int64], ...]] = [(np.empty(0, np.int64),) * 3]
    done = 0
    for pattern, times in patterns:
        columns = []
        for length in pattern:
            columns.append(following[length] + np.arange(times))
            following[length] += times
        begins = block * (done + np.arange(times))[:, None] + np.cumsum([0, *pattern[:-1]])
        parts.append((np.stack(columns, 1).ravel(), begins.ravel(), np.full(times, len(pattern))))
        done += times
    texts, starts, sizes = (np.concatenate(some) for some in zip(*parts, strict=True))
    return texts, starts, sizes


def pack_calls(packing: Packing, budget: int, padding_id: int, fill_from: float = math.inf) -> Iterator[PackedCall]:
    """Cut a packing into calls of up to `budget` slots; a unit that is longer goes alone. Calls of `fill_from` slots or more
    are filled up: `whole`."""
    bounds = packing.bounds
    unit = 0
    while unit < len(bounds) - 1:
        stop = max(unit + 1, int(np.searchsorted(bounds, bounds[unit] + budget, side="right")) - 1)
        stop = min(stop, unit + MOST_UNITS)
        slots = int(bounds[stop] - bounds[unit])
        whole = fill_from <= slots <= budget
        yield _call(packing, unit, stop, padding_id, budget if whole else padded(slots), whole)
        unit = stop


def _call(packing: Packing, unit: int, stop: int, padding_id: int, slots: int, whole: bool) -> PackedCall:
    """XLM-R numbers the positions from `padding_id` + 1 and passes over padding, also where a text spells it out."""
    rows = slice(int(packing.firsts[unit]), int(packing.firsts[stop]))
    lengths = packing.lengths[rows]
    starts = packing.starts[rows] - packing.bounds[unit]
    first = np.cumsum(lengths) - lengths
    places = np.repeat(starts - first, lengths) + np.arange(int(lengths.sum()))
    at = int(packing.lengths[: rows.start].sum())
    tokens = packing.ids[at : at + len(places)]
    ids = np.full(slots, padding_id, dtype=np.int64)
    positions = np.full(len(ids), padding_id, dtype=np.int64)
    ids[places] = tokens
    real = tokens != padding_id
    counted = real.cumsum()
    positions[places] = (counted - np.repeat(counted[first] - real[first], lengths)) * real + padding_id
    blocks = min(max(packing.blocks - unit, 0), stop - unit)
    return PackedCall(ids, positions, lengths, starts, places, blocks, packing.block, whole)


def padded(tokens: int) -> int:
    """Tokens with their tail: few shapes of matrix, so that what a library prepares for a shape is used again."""
    step = next(step for limit, step in TAIL_STEPS if tokens <= limit)
    return -(-tokens // step) * step


class PackedModel:
    """BGE-M3 as FlagEmbedding loaded it (its `model` attribute, in place on its device), run on packed tokens.

    `projection` [D, C] float32: ColBERT vectors are multiplied by it and normalised again.
    """

    def __init__(self, model: Any, device: str, projection: npt.NDArray[np.float32] | None = None) -> None:
        import torch

        self._embeddings = model.model.embeddings
        self._first, self._layers = _arrange(model.model.encoder.layer)
        self._sparse, self._colbert = model.sparse_linear, model.colbert_linear
        self._device = device
        self._projection = None if projection is None else torch.from_numpy(projection).to(device)
        self._heads = model.model.config.num_attention_heads
        varlen = _has_variable_length(self._layers[0].qkv)
        measured = device == "cpu" and cpu_has_avx512_bf16_alone()
        size = self._layers[0].qkv.dtype.itemsize
        self.worth_filling = WORTH_FILLING[size] if measured and fusion.available() else None
        self.fused: dict[int, list[_FusedLayer]] = {}
        by_block = ("two products", "blocks") if measured and size == 2 else ("blocks", "two products")
        self.attentions = ("varlen", *by_block) if varlen else by_block
        self.blocks = self.attend_by(self.attentions[0])

    def __call__(self, call: PackedCall) -> tuple[torch.Tensor, ...]:
        """dense [n, D], sparse ids [T] and weights [T] in row order (0: not an entry; those of special tokens are in it),
        ColBERT [T - n, C], and which rows are finite [n]. Vectors are float32. A row that is not finite may make others of
        its block so."""
        import torch
        from torch.nn.functional import normalize

        def sent(array: npt.NDArray[Any]) -> torch.Tensor:
            return on_device(array, self._device)

        ids, positions, places = sent(call.ids), sent(call.positions), sent(call.places)
        hidden = self._hidden(ids, positions, call)
        first = np.zeros(call.tokens, dtype=bool)
        first[np.cumsum(call.lengths) - call.lengths] = True
        rows, others = sent(np.repeat(np.arange(call.rows), call.lengths)), sent(np.flatnonzero(~first))
        # Normalised in fp32: a bf16 norm is off by up to 0.4%, and every score with it.
        dense = normalize(hidden[sent(call.starts)].float(), dim=-1)
        colbert = normalize(self._colbert(hidden[places[others]]).float(), dim=-1)
        if self._projection is not None:
            colbert = normalize(colbert @ self._projection, dim=-1)
        weights = torch.relu(self._sparse(hidden)).squeeze(-1).float()[places]
        sums = weights.index_add(0, others, colbert.sum(1))
        finite = torch.isfinite(dense.sum(1).index_add(0, rows, sums))
        return dense, *segment_max(ids[places], weights, rows), colbert, finite

    def attend_by(self, kind: str) -> tuple[int, ...]:
        """Take one of the `attentions`, and return the sizes of blocks that go with it."""
        kinds: dict[str, Attention] = {
            "varlen": _variable_length,
            "blocks": partial(_by_block, attention=_fused),
            "two products": partial(_by_block, attention=_two_products),
        }
        self._attention = kinds[kind]
        return (0,) if kind == "varlen" else tuple(BLOCK_COSTS)

    def fuse(self, rows: int) -> None:
        """Compile the layers for calls of so many slots, once; by a thread that has as many threads as those which will call.

        Takes the time of two such calls, and as much memory as the layers' weights.
        """
        if rows in self.fused:
            return
        hidden = self._layers[0].qkv.new_zeros(rows, self._layers[0].qkv.shape[1])
        self.fused[rows] = [
            _FusedLayer(fusion.fused(layer.project, hidden), fusion.fused(layer.finish_anew, hidden, hidden))
            for layer in self._layers
        ]

    def gemm_tflops(self, rows: int) -> float:
        """What this device reaches in the largest products of this model alone: the limit of a forward pass."""
        layer, packed = self._layers[0], self.worth_filling is not None
        kinds = (False, True) if packed else (False,)
        return max(gemm_tflops(weight, rows, packed=kind) for weight in (layer.inner, layer.outer) for kind in kinds)

    def _hidden(self, ids: torch.Tensor, positions: torch.Tensor, call: PackedCall) -> torch.Tensor:
        """The last layer's output for every token, [P, D]."""
        hidden: torch.Tensor = self._embeddings(input_ids=ids[None], position_ids=positions[None])[0] + self._first
        attend = self._attention(call, hidden)
        layers: Sequence[_Layer | _FusedLayer] = self.fused[len(hidden)] if call.whole else self._layers
        for layer in layers:
            qkv = layer.project(hidden)
            attended = attend(*qkv.view(len(hidden), 3, self._heads, -1).unbind(1)).reshape(hidden.shape)
            hidden = layer.finish(attended, hidden)
        return hidden


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights [out, in] and what they read.

    A sublayer ends with LayerNorm(x + inner W + b). Its input here is x + b, to which the product is added in place: no
    pass over memory for the sum. The LayerNorm before it gives x + b, b being added to its own bias; the other reader of x + b
    has b's share taken out of its bias: (x + b) V + (c - b V). The same numbers but for rounding.
    """

    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    output: torch.Tensor
    attended: Callable[[torch.Tensor], torch.Tensor]
    inner: torch.Tensor
    inner_bias: torch.Tensor
    activation: Callable[[torch.Tensor], torch.Tensor]
    outer: torch.Tensor
    ended: Callable[[torch.Tensor], torch.Tensor]

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, [P, 3 D]."""
        from torch.nn.functional import linear

        return linear(hidden, self.qkv, self.qkv_bias)

    def finish(self, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What follows attention; overwrites `hidden`."""
        from torch.nn.functional import linear

        hidden = self.attended(hidden.addmm_(attended, self.output.t()))
        inner = self.activation(linear(hidden, self.inner, self.inner_bias))
        return self.ended(hidden.addmm_(inner, self.outer.t()))

    def finish_anew(self, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The same, in a form that can be fused."""
        from torch.nn.functional import linear

        hidden = self.attended(linear(attended, self.output) + hidden)
        inner = self.activation(linear(hidden, self.inner, self.inner_bias))
        return self.ended(linear(inner, self.outer) + hidden)


@dataclass(frozen=True, slots=True)
class _FusedLayer:
    """A layer's two parts, compiled for whole calls."""

    project: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _arrange(layers: Any) -> tuple[torch.Tensor, list[_Layer]]:
    """What is added to the embeddings, and the layers."""
    import torch

    arranged = []
    closing = [layer.attention.output.dense.bias.data for layer in layers]
    for layer, bias, following in zip(layers, closing, [*closing[1:], torch.zeros_like(closing[0])], strict=True):
        qkv, qkv_bias = _fuse(layer.attention.self)
        inner, outer = layer.intermediate.dense, layer.output.dense
        arranged.append(
            _Layer(
                qkv,
                _without(qkv_bias, qkv, bias),
                layer.attention.output.dense.weight.data,
                _norm(layer.attention.output.LayerNorm, outer.bias.data),
                inner.weight.data,
                _without(inner.bias.data, inner.weight.data, outer.bias.data),
                layer.intermediate.intermediate_act_fn,
                outer.weight.data,
                _norm(layer.output.LayerNorm, following),
            )
        )
    return closing[0], arranged


def _without(bias: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The bias of a product whose input is shifted."""
    return (bias.float() - weight.float() @ shift.float()).to(bias.dtype)


def _norm(module: Any, shift: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A LayerNorm whose result is shifted."""
    from torch.nn.functional import layer_norm

    weight, bias = module.weight.data, (module.bias.data.float() + shift.float()).to(shift.dtype)
    return lambda hidden: layer_norm(hidden, module.normalized_shape, weight, bias, module.eps)


def on_device(array: npt.NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """An array on the device: to a GPU from pinned memory, so that nobody waits for the kernels queued before."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor if str(device) == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _fuse(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The query, key and value projections of a layer as one; the three become views of it."""
    import torch

    parts = [attention.query, attention.key, attention.value]
    weight = torch.cat([part.weight.data for part in parts])
    bias = torch.cat([part.bias.data for part in parts])
    for part, own_weight, own_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = own_weight, own_bias
    return weight, bias


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """torch's own attention of [rows, heads, length, d]; `mask` is added to the scores."""
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(query, key, value, mask)


def _two_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The same by two matrix products and a softmax of scores in bf16, as in transformers' eager attention.

    Measured: 1.4 to 2.4 times as fast as torch's own in bf16 on a CPU with AVX512-BF16 and without AMX; slower in fp32.
    """
    import torch

    if query.shape[2] > LONGEST_IN_TWO:
        return _fused(query, key, value, mask)
    q, k, v = (part.flatten(0, 1) for part in (query, key, value))
    scores, scale = torch.bmm(q, k.mT).view(*query.shape[:3], -1), query.shape[-1] ** -0.5
    scores = scores.mul_(scale) if mask is None else torch.add(mask, scores, alpha=scale, out=scores)
    return torch.bmm(scores.softmax(-1).flatten(0, 1), v).view(query.shape)


def _by_block(call: PackedCall, hidden: torch.Tensor, attention: Callable[..., torch.Tensor]) -> Attend:
    """Attention within each text, [P, heads, d]: one call for all blocks, one for each run of longer texts of one length.

    A multiple of 16 slots is what the CPU's kernel is fast for: texts of 8 tokens take a third of the time so.
    """
    import torch

    segments = (*(((call.blocks, call.block),) if call.blocks else ()), *call.segments)
    mask = _same_text(call, hidden)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        parts = []
        at = 0
        for place, (rows, length) in enumerate(segments):
            span = slice(at, at + rows * length)
            q, k, v = (part[span].view(rows, length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
            attended = attention(q, k, v, mask if place == 0 else None)
            parts.append(attended.transpose(1, 2).flatten(0, 1))
            at += rows * length
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return attend


def _same_text(call: PackedCall, hidden: torch.Tensor) -> torch.Tensor | None:
    """What is added to the scores within the blocks, [blocks, 1, block, block]: nothing within a text, else -inf."""
    import torch

    if not call.blocks:
        return None
    owner = np.full(len(call.ids), -1)
    owner[call.places] = np.repeat(np.arange(call.rows), call.lengths)
    owners = on_device(owner[: call.blocks * call.block], hidden.device).view(call.blocks, 1, call.block)
    mask = hidden.new_zeros(call.blocks, 1, call.block, call.block)
    return mask.masked_fill_(owners[..., None] != owners[:, :, None], -torch.inf)


def _variable_length(call: PackedCall, hidden: torch.Tensor) -> Attend:
    """The same by FlashAttention, over all texts of a call at once; it takes no blocks."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    lengths = np.repeat([length for _, length in call.segments], [rows for rows, _ in call.segments])
    bounds = on_device(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32), hidden.device)
    longest = int(lengths.max())

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attended = varlen_attn(query, key, value, bounds, bounds, longest, longest)
        return attended if isinstance(attended, torch.Tensor) else attended[0]

    return attend


def _has_variable_length(weight: torch.Tensor) -> bool:
    """Whether the model of this weight can use FlashAttention's variable-length kernel: half precision, Ampere, torch 2.10."""
    import torch

    half = weight.dtype in (torch.float16, torch.bfloat16)
    if not weight.is_cuda or not half or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def segment_max(ids: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Within each row: ids ascending, and at each first occurrence the maximum weight of that id, 0 at the others.

    All [T]; `rows` ascending. One sort for the whole call, never a row as wide as the vocabulary.
    """
    import torch

    keys, places = torch.sort((rows << 32) | ids)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    segment = first.long().cumsum(0) - 1
    highest = torch.zeros_like(weights).scatter_reduce_(0, segment, weights[places], reduce="amax")
    return keys & 0xFFFFFFFF, highest[segment].masked_fill(~first, 0.0)


def max_sim_matrix(
    questions: Encoding, records: Encoding, projection: npt.NDArray[np.float32] | None, device: str
) -> npt.NDArray[np.float32]:
    """MaxSim, averaged over a question's vectors, of every question with every record, [questions, records]."""
    import torch
    from torch.nn.functional import normalize

    def vectors(encoding: Encoding) -> torch.Tensor:
        matrix = torch.from_numpy(encoding.colbert).to(device).float()
        return matrix if projection is None else normalize(matrix @ torch.from_numpy(projection).to(device), dim=-1)

    def owners(encoding: Encoding) -> torch.Tensor:
        lengths = torch.from_numpy(encoding.colbert_lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)

    with torch.inference_mode():
        asked, known, asker, owner = vectors(questions), vectors(records), owners(questions), owners(records)
        sums = torch.zeros(len(questions.dense), len(records.dense), device=device)
        for start in range(0, len(asked), QUESTION_VECTORS):
            products = known @ asked[start : start + QUESTION_VECTORS].T
            best = torch.full((len(records.dense), products.shape[1]), -2.0, device=device)
            best.scatter_reduce_(0, owner[:, None].expand_as(products), products, reduce="amax")
            sums.index_add_(0, asker[start : start + QUESTION_VECTORS], best.T)
        counts = torch.from_numpy(questions.colbert_lengths).to(device).clamp(min=1)
        scores: npt.NDArray[np.float32] = (sums / counts[:, None]).cpu().numpy()
    return scores


def gemm_tflops(weight: torch.Tensor, rows: int, seconds: float = 0.5, *, packed: bool = False) -> float:
    """The median TFLOP/s of the matrix product [rows, D] x [D, N], one after another, with this weight [N, D]; `packed`: as
    fused layers have it."""
    import torch
    from torch.nn.functional import linear

    rates = []
    with torch.inference_mode():
        source = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)

        def plain(rows: torch.Tensor) -> torch.Tensor:
            return linear(rows, weight)

        product = fusion.fused(plain, source) if packed else plain
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            for _ in range(GEMMS):
                product(source)
            if weight.is_cuda:
                torch.cuda.synchronize()
            rates.append(GEMMS * 2 * rows * weight.numel() / (time.perf_counter() - started) / 1e12)
    return float(np.median(rates))
