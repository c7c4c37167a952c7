"""The numbers of a model that say how much work a batch is, and how much of it fits a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

CPU_TOKENS_PER_BATCH = 2048  # what its caches like
LARGEST_GPU_TOKENS_PER_BATCH = 32_768
SMALLEST_TOKENS_PER_BATCH = 512
SLOWEST_FLOPS = {"cpu": 4e9, "cuda": 5e11}  # a slower device would look as if it hung


@dataclass(frozen=True, slots=True)
class ModelShape:
    """An XLM-R encoder's sizes; `padding_id`: the token that fills empty slots."""

    dim: int
    layers: int
    intermediate: int
    padding_id: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """From a transformers configuration."""
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            config.intermediate_size,
            config.pad_token_id,
        )

    def flops(self, lengths: npt.NDArray[np.int64]) -> float:
        """Useful floating-point operations of texts of these lengths: with heads, no padding."""
        products = 2 * (4 * self.dim**2 + 2 * self.dim * self.intermediate)  # of a layer, a token
        heads = 2 * self.dim**2 + 2 * self.dim  # ColBERT and sparse, a token
        attention = int((lengths**2).sum()) * self.layers * 4 * self.dim  # scores and their sums
        return int(lengths.sum()) * (self.layers * products + heads) + attention

    def longest_call_s(self, tokens: int, max_length: int, device: str) -> float:
        """Seconds in which such a call must end, even on a slow device that warms up."""
        dense = self.layers * (4 * self.dim**2 + 2 * self.dim * self.intermediate)
        flops = 2 * max(tokens, max_length) * (dense + self.layers * max_length * self.dim * 2)
        return 60.0 + float(flops) / SLOWEST_FLOPS[device]

    def tokens_per_batch(self, device: str) -> int:
        """On a GPU what fits in half of its free memory; on a CPU what its caches like."""
        import torch

        if device == "cpu":
            return CPU_TOKENS_PER_BATCH
        free, _ = torch.cuda.mem_get_info()
        return gpu_tokens_per_batch(free, self.dim, self.intermediate)


def gpu_tokens_per_batch(free: int, dim: int, intermediate: int) -> int:
    """Tokens per call whose activations (4 bytes a value) take at most half of `free` bytes."""
    per_token = (2 * intermediate + 12 * dim) * 4  # bytes
    return min(LARGEST_GPU_TOKENS_PER_BATCH, max(SMALLEST_TOKENS_PER_BATCH, free // 2 // per_token))
