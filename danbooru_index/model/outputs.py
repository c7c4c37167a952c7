"""The outputs of a batch on the device: flat buffers in the plan's order, and their way to the host in the input's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from danbooru_index.embeddings import Array
from danbooru_index.model.attention import on_device
from danbooru_index.model.batch_plan import BatchPlan

if TYPE_CHECKING:
    import torch

OUTPUTS = ("dense", "sparse_ids", "sparse_weights", "colbert", "finite")
Buffers = dict[str, "torch.Tensor"]


def allocate(plan: BatchPlan, dims: tuple[int, int], dtype: torch.dtype, device: str) -> Buffers:
    """Room for the outputs of all of a plan's calls; `dims`: of dense and of ColBERT vectors."""
    import torch

    sizes = {"dense": plan.unique_rows, "colbert": plan.vectors, "finite": plan.unique_rows}
    sizes |= {"sparse_ids": plan.unique_tokens, "sparse_weights": plan.unique_tokens}
    widths = {"dense": dims[:1], "colbert": dims[1:]}
    kinds = {"sparse_ids": torch.int32, "sparse_weights": torch.float32, "finite": torch.bool}
    return {
        name: torch.empty((size, *widths.get(name, ())), dtype=kinds.get(name, dtype), device=device)
        for name, size in sizes.items()
    }


def put(buffers: Buffers, parts: tuple[torch.Tensor, ...], rows: int, tokens: int) -> None:
    """The outputs of one call behind those of `rows` texts with `tokens` tokens."""
    at = {"dense": rows, "finite": rows, "colbert": tokens - rows}
    for name, part in zip(OUTPUTS, parts, strict=True):
        start = at.get(name, tokens)
        buffers[name][start : start + len(part)] = part


def in_input_order(buffers: Buffers, plan: BatchPlan) -> dict[str, Array]:
    """Buffers as numpy arrays, put in order here: takes no memory of the device, and none that is pinned."""
    arrays: dict[str, Array] = {name: value.cpu().numpy() for name, value in buffers.items()}
    return arrays | {name: arrays[name].take(way, axis=0) for name, way in plan.ways.items()}


def by_pinned_memory(buffers: Buffers, plan: BatchPlan, stream: Any) -> dict[str, Array]:
    """The same from a GPU, which puts them in order, through pinned memory, on a stream of their own, beside the next
    forward pass."""
    import torch

    with torch.cuda.stream(stream):
        ways = {name: on_device(way, "cuda") for name, way in plan.ways.items()}
        there = {name: value[ways[name]] if name in ways else value for name, value in buffers.items()}
        copies = {
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            for name, value in there.items()
        }
        ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        ended.record()
    ended.synchronize()
    return {name: value.numpy() for name, value in copies.items()}
