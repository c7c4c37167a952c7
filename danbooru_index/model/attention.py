"""Attention within each text of a packed call: FlashAttention's varlen kernel, or blocks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from danbooru_index.model.packing import PackedCall

if TYPE_CHECKING:
    import torch


Attend = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Attention = Callable[["PackedCall", "torch.Tensor"], Attend]
LONGEST_IN_TWO = 512  # tokens: 16 heads have 8 MB of scores for such a text


def on_device(array: npt.NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """An array on the device; to a GPU by pinned memory, asynchronously."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor if str(device) == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def attention_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """torch's own attention of [rows, heads, length, d]; `mask` is added to the scores."""
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(query, key, value, mask)


def attention_eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The same by two matrix products and a softmax of scores in bf16, as in transformers' eager
    attention.

    Measured: 1.4 to 2.4 times as fast as torch's own in bf16 on a CPU with AVX512-BF16 and without
    AMX; slower in fp32.
    """
    import torch

    if query.shape[2] > LONGEST_IN_TWO:
        return attention_sdpa(query, key, value, mask)
    q, k, v = (part.flatten(0, 1) for part in (query, key, value))  # [rows * heads, length, d]
    scores, scale = torch.bmm(q, k.mT).view(*query.shape[:3], -1), query.shape[-1] ** -0.5
    scores = (
        scores.mul_(scale) if mask is None else torch.add(mask, scores, alpha=scale, out=scores)
    )
    return torch.bmm(scores.softmax(-1).flatten(0, 1), v).view(query.shape)


def attention_blocked(
    call: PackedCall, hidden: torch.Tensor, attention: Callable[..., torch.Tensor]
) -> Attend:
    """Attention within each text [P, heads, d]: a call for all blocks, one per longer length.

    The CPU's kernel is fast for multiples of 16 slots: texts of 8 tokens take a third of the time.
    """
    import torch

    segments = (*(((call.blocks, call.block),) if call.blocks else ()), *call.segments)
    mask = _same_text(call, hidden)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        at = 0  # slots done
        for rows, length in segments:
            span = slice(at, at + rows * length)  # of [P, heads, d]
            q, k, v = (
                part[span].view(rows, length, *part.shape[1:]).transpose(1, 2)
                for part in (query, key, value)
            )
            attended = attention(q, k, v, None if parts else mask)
            parts.append(attended.transpose(1, 2).flatten(0, 1))  # [rows * length, heads, d]
            at += rows * length
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return attend


def _same_text(call: PackedCall, hidden: torch.Tensor) -> torch.Tensor | None:
    """The blocks' mask [blocks, 1, block, block]: 0 within a text, else -inf."""
    import torch

    if not call.blocks:
        return None
    owner = np.full(len(call.ids), -1)  # [P]: the text of each slot; padding is nobody's
    owner[call.places] = np.repeat(np.arange(call.rows), call.lengths)
    owners = on_device(owner[: call.blocks * call.block], hidden.device).view(
        call.blocks, 1, call.block
    )
    mask = hidden.new_zeros(call.blocks, 1, call.block, call.block)
    return mask.masked_fill_(owners[..., None] != owners[:, :, None], -torch.inf)


def attention_varlen(call: PackedCall, hidden: torch.Tensor) -> Attend:
    """The same by FlashAttention, over all texts of a call at once; it takes no blocks."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    lengths = np.repeat(
        [length for _, length in call.segments], [rows for rows, _ in call.segments]
    )
    bounds = on_device(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32), hidden.device)
    longest = int(lengths.max())

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attended = varlen_attn(query, key, value, bounds, bounds, longest, longest)
        return attended if isinstance(attended, torch.Tensor) else attended[0]

    return attend


def has_varlen_kernel(weight: torch.Tensor) -> bool:
    """Whether FlashAttention's varlen kernel runs here: half precision, Ampere, torch 2.10."""
    import torch

    half = weight.dtype in (torch.float16, torch.bfloat16)
    if not weight.is_cuda or not half or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None
