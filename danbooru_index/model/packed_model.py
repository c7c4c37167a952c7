"""BGE-M3's forward pass on packed tokens: texts one after the other, almost no padding.

XLM-R's own layers do the work on [tokens, width] matrices; only attention knows where a text ends:
by FlashAttention's variable-length kernel on a GPU that has it, else in blocks of 32 to 128 tokens
filled with whole texts, under a mask. So every matrix product is as large as the token budget,
whatever the lengths are. Called by `encoder`, which plans the calls.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from danbooru_index.errors import ModelError, first_line
from danbooru_index.model import onednn
from danbooru_index.model.attention import (
    Attention,
    attention_blocked,
    attention_eager,
    attention_sdpa,
    attention_varlen,
    has_varlen_kernel,
    on_device,
)
from danbooru_index.model.device import cpu_has_avx512_bf16_alone
from danbooru_index.model.layers import FusedLayer, Layer, arrange_layers
from danbooru_index.model.packing import BLOCK_COSTS, PackedCall
from danbooru_index.model.tuning import NEVER_FILL

if TYPE_CHECKING:
    import torch


GEMMS = 8


# Minimum fill ratio, per dtype size, at which padding a call to full size is faster.
MIN_FILL_RATIO = {4: 0.5, 2: 0.9}


class PackedModel:
    """BGE-M3 as FlagEmbedding loaded it (its `model` attribute, in place on its device), run on
    packed tokens.

    `projection` [D, C] float32: ColBERT vectors are multiplied by it and normalised again.
    """

    def __init__(
        self, model: Any, device: str, projection: npt.NDArray[np.float32] | None = None
    ) -> None:
        import torch

        self._embeddings = model.model.embeddings
        self._first, self._layers = arrange_layers(model.model.encoder.layer)
        self._sparse, self._colbert = model.sparse_linear, model.colbert_linear
        self._device = device
        self._projection = None if projection is None else torch.from_numpy(projection).to(device)
        self._heads = model.model.config.num_attention_heads
        varlen = has_varlen_kernel(self._layers[0].qkv)
        measured = device == "cpu" and cpu_has_avx512_bf16_alone()
        size = self._layers[0].qkv.dtype.itemsize
        self.min_fill_ratio = (
            MIN_FILL_RATIO[size] if measured and onednn.available() else NEVER_FILL
        )
        self._compiled: dict[int, list[FusedLayer]] = {}
        by_block = ("eager", "sdpa") if measured and size == 2 else ("sdpa", "eager")
        self.attentions = ("varlen", *by_block) if varlen else by_block
        self._attend_by(self.attentions[0])

    def __call__(self, call: PackedCall) -> tuple[torch.Tensor, ...]:
        """dense [n, D], sparse ids [T] and weights [T] in row order (0: not an entry; those of
        special tokens are in it), ColBERT [T - n, C], and which rows are finite [n]. Vectors are
        float32. A row that is not finite may make others of its block so.
        """
        import torch
        from torch.nn.functional import normalize

        def sent(array: npt.NDArray[Any]) -> torch.Tensor:
            return on_device(array, self._device)

        ids, positions, places = sent(call.ids), sent(call.positions), sent(call.places)
        hidden = self._hidden(ids, positions, call)  # [P, D]
        first = np.zeros(call.tokens, dtype=bool)  # [T]: which tokens are <s>
        first[np.cumsum(call.lengths) - call.lengths] = True
        rows = sent(np.repeat(np.arange(call.rows), call.lengths))
        others = sent(np.flatnonzero(~first))
        # Normalised in fp32: a bf16 norm is off by up to 0.4%, and every score with it.
        dense = normalize(hidden[sent(call.starts)].float(), dim=-1)
        colbert = normalize(self._colbert(hidden[places[others]]).float(), dim=-1)
        if self._projection is not None:
            colbert = normalize(colbert @ self._projection, dim=-1)
        weights = torch.relu(self._sparse(hidden)).squeeze(-1).float()[places]  # [T]
        sums = weights.index_add(0, others, colbert.sum(1))  # [T]: not finite where a vector is not
        finite = torch.isfinite(dense.sum(1).index_add(0, rows, sums))
        return dense, *segment_max(ids[places], weights, rows), colbert, finite

    @classmethod
    def arranged(
        cls, path: str, model: Any, device: str, projection: npt.NDArray[np.float32] | None
    ) -> Self:
        """The model of a folder; raise `ModelError` where it does not fit this device."""
        try:
            return cls(model, device, projection)
        except RuntimeError as error:
            raise ModelError(
                f"{path}: cannot be arranged on this {device} device ({first_line(error)})"
            ) from None

    def attending_by(self, kind: str) -> Self:
        """The same model with another of the `attentions`, and nothing compiled yet."""
        other = copy.copy(self)
        other._compiled = {}
        other._attend_by(kind)
        return other

    def _attend_by(self, kind: str) -> None:
        kinds: dict[str, Attention] = {
            "varlen": attention_varlen,
            "sdpa": partial(attention_blocked, attention=attention_sdpa),
            "eager": partial(attention_blocked, attention=attention_eager),
        }
        self._attention = kinds[kind]
        self.blocks = (0,) if kind == "varlen" else tuple(BLOCK_COSTS)

    def is_compiled(self, rows: int) -> bool:
        """Whether calls of so many slots have their layers compiled."""
        return rows in self._compiled

    def compile(self, rows: int) -> None:
        """Compile the layers for calls of so many slots, once; by a thread that has as many cores
        as those which will call.

        Takes the time of two such calls, and as much memory as the layers' weights.
        """
        if rows in self._compiled:
            return
        hidden = self._layers[0].qkv.new_zeros(rows, self._layers[0].qkv.shape[1])
        self._compiled[rows] = [
            FusedLayer(
                onednn.fused(layer.project, hidden), onednn.fused(layer.finish_anew, hidden, hidden)
            )
            for layer in self._layers
        ]

    def gemm_tflops(self, rows: int) -> float:
        """TFLOP/s of this device in the model's largest matrix products: a forward pass's limit."""
        layer, packed = self._layers[0], self.min_fill_ratio < NEVER_FILL
        kinds = (False, True) if packed else (False,)
        return max(
            gemm_tflops(weight, rows, packed=kind)
            for weight in (layer.inner, layer.outer)
            for kind in kinds
        )

    def _hidden(self, ids: torch.Tensor, positions: torch.Tensor, call: PackedCall) -> torch.Tensor:
        """The last layer's output for every token, [P, D]."""
        hidden: torch.Tensor = (
            self._embeddings(input_ids=ids[None], position_ids=positions[None])[0] + self._first
        )
        attend = self._attention(call, hidden)
        layers: Sequence[Layer | FusedLayer] = (
            self._compiled[len(hidden)] if call.whole else self._layers
        )
        for layer in layers:
            qkv = layer.project(hidden)  # [P, 3 D]
            attended = attend(*qkv.view(len(hidden), 3, self._heads, -1).unbind(1)).reshape(
                hidden.shape
            )
            hidden = layer.finish(attended, hidden)
        return hidden


def segment_max(
    ids: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Within each row: ids ascending, and at each first occurrence the maximum weight of that id, 0
    at the others.

    All [T]; `rows` ascending. One sort for the whole call, never a row as wide as the vocabulary.
    """
    import torch

    keys, places = torch.sort((rows << 32) | ids)  # by row, then by id
    first = torch.ones_like(keys, dtype=torch.bool)  # of its id in its row
    first[1:] = keys[1:] != keys[:-1]
    segment = first.long().cumsum(0) - 1  # [T]: the run of equal keys each belongs to
    highest = torch.zeros_like(weights).scatter_reduce_(0, segment, weights[places], reduce="amax")
    return keys & 0xFFFFFFFF, highest[segment].masked_fill(~first, 0.0)


def gemm_tflops(
    weight: torch.Tensor, rows: int, seconds: float = 0.5, *, packed: bool = False
) -> float:
    """TFLOP/s of this device in the model's largest matrix products: a forward pass's limit."""
    import torch
    from torch.nn.functional import linear

    rates = []
    with torch.inference_mode():
        source = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)

        def plain(rows: torch.Tensor) -> torch.Tensor:
            return linear(rows, weight)

        product = onednn.fused(plain, source) if packed else plain
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            for _ in range(GEMMS):
                product(source)
            if weight.is_cuda:
                torch.cuda.synchronize()
            rates.append(GEMMS * 2 * rows * weight.numel() / (time.perf_counter() - started) / 1e12)
    return float(np.median(rates))
