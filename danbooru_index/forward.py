"""BGE-M3's forward pass on packed tokens: texts of any length one after the other, nothing padded between them.

XLM-R's own layers do the work on [tokens, width] matrices; only attention knows where a text ends: by FlashAttention's
variable-length kernel on a GPU that has it, else one call of scaled_dot_product_attention for each run of equal
lengths, without a mask. So every matrix product is as large as the token budget, whatever the lengths are.
Called by `encoder`, which plans the calls.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from danbooru_index.batches import Encoding

if TYPE_CHECKING:
    import torch

Attend = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Attention = Callable[[tuple[tuple[int, int], ...], str], Attend]

QUESTION_VECTORS = 256
GEMMS = 8
TAIL_STEPS = ((64, 1), (512, 32), (1 << 62, 128))


@dataclass(frozen=True, slots=True)
class PackedCall:
    """One device call: `ids` and `positions` int64 [P] of T tokens and a tail; `spans`: runs of (rows, length)."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.spans)

    @property
    def tokens(self) -> int:
        return sum(rows * length for rows, length in self.spans)

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The spans, and the tail as one more text."""
        tail = len(self.ids) - self.tokens
        return (*self.spans, (1, tail)) if tail else self.spans


def pack_calls(groups: list[npt.NDArray[np.int32]], budget: int, padding_id: int) -> Iterator[PackedCall]:
    """Cut groups of rows ([n, L] each, L ascending) into calls of up to `budget` tokens; a longer text goes alone."""
    pieces: list[npt.NDArray[np.int32]] = []
    used = 0
    for group in groups:
        count, length = group.shape
        start = 0
        while start < count:
            taken = max(0, min((budget - used) // length, count - start))
            if not taken and pieces:
                yield _call(pieces, padding_id)
                pieces, used = [], 0
                continue
            taken = max(1, taken)
            pieces.append(group[start : start + taken])
            start, used = start + taken, used + taken * length
    if pieces:
        yield _call(pieces, padding_id)


def _call(pieces: list[npt.NDArray[np.int32]], padding_id: int) -> PackedCall:
    """XLM-R numbers the positions from `padding_id` + 1 and passes over padding, also where a text spells it out."""
    spans = tuple((len(piece), piece.shape[1]) for piece in pieces)
    tokens = sum(piece.size for piece in pieces)
    ids = np.full(padded(tokens), padding_id, dtype=np.int64)
    positions = np.full(len(ids), padding_id, dtype=np.int64)
    at = 0
    for piece in pieces:
        real = piece != padding_id
        ids[at : at + piece.size] = piece.ravel()
        positions[at : at + piece.size] = (real.cumsum(1) * real + padding_id).ravel()
        at += piece.size
    return PackedCall(ids, positions, spans)


def padded(tokens: int) -> int:
    """Tokens with their tail: few shapes of matrix, so that what a library prepares for a shape is used again."""
    step = next(step for limit, step in TAIL_STEPS if tokens <= limit)
    return -(-tokens // step) * step


class PackedModel:
    """BGE-M3 as FlagEmbedding loaded it (its `model` attribute, in place on its device), run on packed tokens.

    `projection` [D, C] float32: ColBERT vectors are multiplied by it and normalised again.
    """

    def __init__(
        self, model: Any, device: str, special: list[int], projection: npt.NDArray[np.float32] | None = None
    ) -> None:
        import torch

        self._embeddings, self._layers = model.model.embeddings, model.model.encoder.layer
        self._sparse, self._colbert = model.sparse_linear, model.colbert_linear
        self._device = device
        self._special = torch.tensor(special, device=device)
        self._projection = None if projection is None else torch.from_numpy(projection).to(device)
        self._qkv = [_fuse(layer.attention.self) for layer in self._layers]
        self._heads = model.model.config.num_attention_heads
        self._attention: Attention = _variable_length if _has_variable_length(self._qkv[0][0]) else _by_length

    def __call__(self, call: PackedCall) -> tuple[torch.Tensor, ...]:
        """dense [n, D], sparse ids [T] and weights [T] in row order (0: not an entry), ColBERT [T - n, C], and which
        rows are finite [n]. Vectors are float32."""
        import torch
        from torch.nn.functional import normalize

        sent = torch.from_numpy(np.stack([call.ids, call.positions])).to(self._device)
        hidden = self._hidden(sent[0], sent[1], call)[: call.tokens]
        lengths = np.repeat([length for _, length in call.spans], [rows for rows, _ in call.spans])
        first = np.zeros(call.tokens, dtype=bool)
        first[np.cumsum(lengths) - lengths] = True
        rows = torch.from_numpy(np.repeat(np.arange(call.rows), lengths)).to(self._device)
        starts = torch.from_numpy(np.flatnonzero(first)).to(self._device)
        others = torch.from_numpy(np.flatnonzero(~first)).to(self._device)
        # Normalised in fp32: a bf16 norm is off by up to 0.4%, and every score with it.
        dense = normalize(hidden[starts].float(), dim=-1)
        colbert = normalize(self._colbert(hidden[others]).float(), dim=-1)
        if self._projection is not None:
            colbert = normalize(colbert @ self._projection, dim=-1)
        weights = torch.relu(self._sparse(hidden)).squeeze(-1).float()
        sums = weights.index_add(0, others, colbert.sum(1))
        finite = torch.isfinite(dense.sum(1).index_add(0, rows, sums))
        ids = sent[0, : call.tokens]
        weights = weights.masked_fill(torch.isin(ids, self._special), 0.0)
        return dense, *segment_max(ids, weights, rows), colbert, finite

    def gemm_tflops(self, rows: int) -> float:
        """What this device reaches in the largest products of this model alone: the limit of a forward pass."""
        layer = self._layers[0]
        return max(gemm_tflops(weight, rows) for weight in (layer.intermediate.dense.weight, layer.output.dense.weight))

    def _hidden(self, ids: torch.Tensor, positions: torch.Tensor, call: PackedCall) -> torch.Tensor:
        """The last layer's output for every token, [P, D]."""
        from torch.nn.functional import linear

        attend = self._attention(call.segments, self._device)
        hidden = self._embeddings(input_ids=ids[None], position_ids=positions[None])[0]
        width = hidden.shape[1]
        for layer, (weight, bias) in zip(self._layers, self._qkv, strict=True):
            query, key, value = linear(hidden, weight, bias).view(len(hidden), 3, self._heads, -1).unbind(1)
            attended = attend(query, key, value).reshape(len(hidden), width)
            hidden = layer.attention.output(attended, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        return cast("torch.Tensor", hidden)


def _fuse(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The query, key and value projections of a layer as one; the three become views of it."""
    import torch

    parts = [attention.query, attention.key, attention.value]
    weight = torch.cat([part.weight.data for part in parts])
    bias = torch.cat([part.bias.data for part in parts])
    for part, own_weight, own_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = own_weight, own_bias
    return weight, bias


def _by_length(segments: tuple[tuple[int, int], ...], _: str) -> Attend:
    """Attention within each text, [P, heads, d]: one call for each run of texts of one length."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        at = 0
        for rows, length in segments:
            span = slice(at, at + rows * length)
            q, k, v = (part[span].view(rows, length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
            out[span] = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
            at += rows * length
        return out

    return attend


def _variable_length(segments: tuple[tuple[int, int], ...], device: str) -> Attend:
    """The same by FlashAttention, over all texts of a call at once."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    lengths = np.repeat([length for _, length in segments], [rows for rows, _ in segments])
    bounds = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)).to(device)
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


def gemm_tflops(weight: torch.Tensor, rows: int, seconds: float = 1.0) -> float:
    """The median TFLOP/s of the matrix product [rows, D] x [D, N], one after another, with this weight [N, D]."""
    import torch
    from torch.nn.functional import linear

    rates = []
    with torch.inference_mode():
        source = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            for _ in range(GEMMS):
                linear(source, weight)
            if weight.is_cuda:
                torch.cuda.synchronize()
            rates.append(GEMMS * 2 * rows * weight.numel() / (time.perf_counter() - started) / 1e12)
    return float(np.median(rates))
