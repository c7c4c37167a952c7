"""Running a batch's plan: its calls, smaller token budgets when memory runs out, its cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from danbooru_index.embeddings import Array, EncoderStats
from danbooru_index.errors import ModelError
from danbooru_index.model.attention import on_device
from danbooru_index.model.batch_plan import BatchPlan
from danbooru_index.model.loading import is_out_of_memory
from danbooru_index.model.packed_model import PackedModel
from danbooru_index.model.packing import PackedCall
from danbooru_index.model.scheduler import Scheduler
from danbooru_index.model.shape import ModelShape
from danbooru_index.model.tuning import EncoderTuning

if TYPE_CHECKING:
    import torch


OUTPUTS = ("dense", "sparse_ids", "sparse_weights", "colbert", "finite")
Buffers = dict[str, "torch.Tensor"]

MAX_OOM_RETRIES = 8
OnRows = Callable[[int], None]


def allocate(plan: BatchPlan, dims: tuple[int, int], dtype: torch.dtype, device: str) -> Buffers:
    """Room for the outputs of all of a plan's calls; `dims`: of dense and of ColBERT vectors."""
    import torch

    sizes = {"dense": plan.unique_rows, "colbert": plan.vectors, "finite": plan.unique_rows}  # rows
    sizes |= {"sparse_ids": plan.unique_tokens, "sparse_weights": plan.unique_tokens}
    widths = {"dense": dims[:1], "colbert": dims[1:]}
    kinds = {"sparse_ids": torch.int32, "sparse_weights": torch.float32, "finite": torch.bool}
    return {
        name: torch.empty(
            (size, *widths.get(name, ())), dtype=kinds.get(name, dtype), device=device
        )
        for name, size in sizes.items()
    }


def put(buffers: Buffers, parts: tuple[torch.Tensor, ...], rows: int, tokens: int) -> None:
    """The outputs of one call behind those of `rows` texts with `tokens` tokens."""
    at = {"dense": rows, "finite": rows, "colbert": tokens - rows}  # others: by token
    for name, part in zip(OUTPUTS, parts, strict=True):
        start = at.get(name, tokens)
        buffers[name][start : start + len(part)] = part


def in_input_order(buffers: Buffers, plan: BatchPlan) -> dict[str, Array]:
    """Buffers as numpy arrays, reordered on the host: takes no device or pinned memory."""
    arrays: dict[str, Array] = {name: value.cpu().numpy() for name, value in buffers.items()}
    return arrays | {name: arrays[name].take(way, axis=0) for name, way in plan.ways.items()}


def by_pinned_memory(buffers: Buffers, plan: BatchPlan, stream: Any) -> dict[str, Array]:
    """The same from a GPU, which puts them in order, through pinned memory, on a stream of their
    own, beside the next forward pass.
    """
    import torch

    with torch.cuda.stream(stream):
        ways = {name: on_device(way, "cuda") for name, way in plan.ways.items()}
        there = {
            name: value[ways[name]] if name in ways else value for name, value in buffers.items()
        }
        copies = {
            name: (
                torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(
                    value, non_blocking=True
                )
            )
            for name, value in there.items()
        }
        ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        ended.record()
    ended.synchronize()
    return {name: value.numpy() for name, value in copies.items()}


class DeviceRun:
    """Batches on one device. `dims`: values of a dense and of a ColBERT vector; `copies`: a GPU's
    stream for the way back.

    `forward` is the packed model; a test may put another callable in its place.
    """

    def __init__(
        self,
        packed: PackedModel,
        scheduler: Scheduler,
        shape: ModelShape,
        dims: tuple[int, int],
        dtype: torch.dtype,
        copies: Any,
        tuning: EncoderTuning,
    ) -> None:
        self.packed = packed if tuning.attention is None else packed.attending_by(tuning.attention)
        self.forward: Callable[[PackedCall], tuple[torch.Tensor, ...]] = self.packed
        self.scheduler, self.shape, self._dims, self._dtype, self._copies = (
            scheduler,
            shape,
            dims,
            dtype,
            copies,
        )
        self._device = scheduler.device
        self.blocks = self.packed.blocks if tuning.blocks is None else tuning.blocks
        ratio = tuning.min_fill_ratio
        self.min_fill_ratio = self.packed.min_fill_ratio if ratio is None else ratio
        self.tokens_per_batch = tuning.tokens_per_batch or shape.tokens_per_batch(self._device)
        self.stats = EncoderStats()
        self._ended = 0.0
        self._counting = threading.Lock()

    def tuned(self, tuning: EncoderTuning) -> DeviceRun:
        """Another one of the same model, which uses the device otherwise."""
        attention = tuning.attention or self.packed.attentions[0]
        scheduler = self.scheduler.again(tuning.streams)
        packed = self.packed.attending_by(attention)
        return DeviceRun(
            packed, scheduler, self.shape, self._dims, self._dtype, self._copies, tuning
        )

    def arrays(
        self, plan: BatchPlan, on_rows: OnRows | None, stats: EncoderStats
    ) -> dict[str, Array]:
        """A plan's outputs, by name, as `BatchPlan.assemble` takes them. Raises `ModelError`."""
        self.calls(plan)  # beside the batch that is on the device now
        buffers = self.scheduler.forward(self._run_counted, plan, on_rows, stats)
        try:
            return self.to_host(buffers, plan)
        except Exception as error:
            # of CUDA, in any class; what is not memory is told as the model's failure
            if self._copies is None or not is_out_of_memory(error):
                raise self._failure(error) from None
            return in_input_order(buffers, plan)

    def _run_counted(self, plan: BatchPlan, on_rows: OnRows | None, stats: EncoderStats) -> Buffers:
        """Run with ever smaller token budgets while memory runs out; count the time and the work.

        Of two batches on the device, the time of the later one begins where the earlier one ended.
        """
        started = time.perf_counter()
        for attempt in range(MAX_OOM_RETRIES + 1):
            budget = self.tokens_per_batch  # another batch may have halved it
            try:
                buffers = self.run(plan, on_rows)
                break
            except Exception as error:  # of torch, in any class
                if not is_out_of_memory(error) or attempt == MAX_OOM_RETRIES or budget <= 1:
                    raise self._failure(error) from None
            self.halve(budget)
        with self._counting:
            ended = time.perf_counter()
            for counted in (self.stats, stats):
                self._count(counted, plan, ended - max(started, self._ended))
            self._ended = ended
        return buffers

    def run(self, plan: BatchPlan, on_rows: OnRows | None = None) -> Buffers:
        """All calls of a plan, launched between those of its neighbours, then waited for."""
        with self.scheduler.launching:
            calls = self.compiled_calls(plan)
            buffers = allocate(plan, self._dims, self._dtype, self._device)
            launched = self.scheduler.launch(calls, partial(self._call, buffers), on_rows)
        self.scheduler.wait(launched, on_rows)
        return buffers

    def _call(self, buffers: Buffers, call: PackedCall, rows: int, tokens: int) -> None:
        import torch

        with torch.inference_mode():
            put(buffers, self.forward(call), rows, tokens)

    def calls(self, plan: BatchPlan) -> list[PackedCall]:
        ratio = self.min_fill_ratio
        return plan.calls_of(
            self.tokens_per_batch, self.scheduler.streams, self.shape.padding_id, ratio
        )

    def compiled_calls(self, plan: BatchPlan) -> list[PackedCall]:
        """Device calls for `plan`; compiles the layers first if a full-size call needs it."""
        calls = self.calls(plan)
        if any(call.whole for call in calls) and not self.packed.is_compiled(plan.budget):
            if self.scheduler.streams > 1:
                self.scheduler.as_a_call(self.packed.compile, plan.budget)
            else:  # this is the thread that calls
                self.packed.compile(plan.budget)
        return calls

    def to_host(self, buffers: Buffers, plan: BatchPlan) -> dict[str, Array]:
        """Device buffers as numpy arrays, dense and ColBERT vectors in the input's order."""
        return (
            in_input_order(buffers, plan)
            if self._copies is None
            else by_pinned_memory(buffers, plan, self._copies)
        )

    def halve(self, budget: int) -> None:
        """Halve the token budget after an OOM at `budget`: once, if several batches failed."""
        with self.scheduler.launching:
            if self.tokens_per_batch == budget:
                self.tokens_per_batch = max(1, budget // 2)
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _failure(self, error: Exception) -> ModelError:
        if is_out_of_memory(error):
            return ModelError(
                f"out of memory on {self._device} even at {self.tokens_per_batch} tokens a batch:"
                " free some memory, or lower --max-length"
            )
        return ModelError(
            f"the model failed on {self._device}: {type(error).__name__}:"
            f" {' '.join(str(error).split())[:300]}"
        )

    def _count(self, stats: EncoderStats, plan: BatchPlan, seconds: float) -> None:
        stats.tokens += plan.tokens
        stats.computed += plan.unique_tokens
        stats.processed += sum(len(call.ids) for call in plan.calls)
        stats.seconds += seconds
        stats.flops += self.shape.flops(plan.unique_lengths)
