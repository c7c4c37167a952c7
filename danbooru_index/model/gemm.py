"""What a device reaches in a model's own matrix products alone: the limit of a forward pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from danbooru_index.model import onednn

if TYPE_CHECKING:
    import torch

GEMMS = 8


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
