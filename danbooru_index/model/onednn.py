"""A layer by oneDNN Graph: weights packed; bias, GELU and residual inside the products.

By TorchScript, the one public way that torch has to it without a compiler. It has been deprecated
since 2.5 and works in the version pinned; where it does not, layers run one operation after the
other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RUNS = 2  # in the first TorchScript notes the shapes, in the second it compiles for them


def available() -> bool:
    """Whether this torch has it."""
    import torch

    fuses = hasattr(torch.jit, "enable_onednn_fusion")
    return bool(torch.backends.mkldnn.is_available()) and fuses  # type: ignore[no-untyped-call]


def fused(function: Callable[..., Any], *examples: torch.Tensor) -> Callable[..., Any]:
    """The same function of tensors shaped like `examples`, and only fast for these; what else it
    reads is frozen.

    It is compiled for as many threads as this one has. Where it cannot be compiled, it is the
    function itself.
    """
    import torch

    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.enable_onednn_fusion(True)
            traced = torch.jit.trace(
                function, tuple(example[:1] for example in examples), check_trace=False
            )  # type: ignore[no-untyped-call]
            for _ in range(RUNS):
                traced(*examples)
    except RuntimeError:  # a Python, or a torch, in which TorchScript is gone
        return function
    finally:
        torch.jit.enable_onednn_fusion(False)
    compiled: Callable[..., Any] = traced
    return compiled
