"""BGE-M3 as FlagEmbedding loads it, quietly; and how its out-of-memory errors are told."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danbooru_index.choices import Precision
from danbooru_index.errors import ModelError, as_model_error
from danbooru_index.model.weights import complete_weights

# As other errors than torch's own say it: the CPU's allocator, cuBLAS, pinned memory.
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and no advice from transformers while a model loads."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def fitting(path: str, device: str) -> Iterator[None]:
    """Raise `ModelError` where the device has not the memory for a model that is put there."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{path}: the model does not fit the memory of this {device} device"
        ) from None


def load_model(path: str, device: str, precision: Precision) -> Any:
    """FlagEmbedding's own loader: model and both heads (`weights_only`) in the precision asked for,
    as `BGEM3FlagModel` has them in its `model`; without the tokenizer, which that loads too.
    """
    import torch
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
        EncoderOnlyEmbedderM3ModelForInference,
        EncoderOnlyEmbedderM3Runner,
    )

    kinds = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
    with quiet_loading(), as_model_error(f"{path}: FlagEmbedding cannot load this model ({{}})"):
        parts = EncoderOnlyEmbedderM3Runner.get_model(
            path, trust_remote_code=False, torch_dtype=kinds.get(precision, torch.float32)
        )
        model = EncoderOnlyEmbedderM3ModelForInference(parts)
        complete_weights(model, Path(path))
        with fitting(path, device):
            model.to(device).eval()
    model.model.pooler = None
    return model


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or of an allocator means that memory ran out."""
    import torch

    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in OUT_OF_MEMORY)
