"""The encoder: texts -> token batches -> dense vectors, sparse weights and ColBERT matrices (BGE-M3).

FlagEmbedding loads weights and heads, the tokenizer is the one it would load; the numbers are those of
`BGEM3FlagModel.encode`. What differs is the work around them: rows are packed (`forward`), so that next to nothing is
padded; equal rows are encoded once; the heads' results stay on the device, in flat buffers, until a whole batch is done.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from danbooru_index.config import Device, Precision
from danbooru_index.embeddings import Array, Embeddings, EncoderStats, TokenBatch, replace_rows
from danbooru_index.errors import ModelError, first_line
from danbooru_index.model.attention import on_device
from danbooru_index.model.batch_plan import FEW_TOKENS, BatchPlan, in_input_order
from danbooru_index.model.device import keep_buffers, uncollected
from danbooru_index.model.loading import is_out_of_memory, load_model
from danbooru_index.model.packed_model import PackedModel
from danbooru_index.model.packing import PackedCall, pack_calls, padded

if TYPE_CHECKING:
    import torch


CPU_TOKENS_PER_BATCH = 2048
LARGEST_GPU_TOKENS_PER_BATCH = 32_768
SMALLEST_TOKENS_PER_BATCH = 512
MOST_STREAMS = 4
AHEAD = 2  # batches on the device: while one ends, the next has begun
WORTH_FUSING = 8  # calls in a batch: fusing takes the time of two
HALVINGS = 8
SLOWEST_FLOPS = {"cpu": 4e9, "cuda": 5e11}  # a slower device would look as if it hung
OUTPUTS = ("dense", "sparse_ids", "sparse_weights", "colbert", "finite")


class Encoder:
    """BGE-M3 on one device. `encode` may be called from several threads: the device calls of one batch come after those
    of the one before, without a pause between them.

    `half_output`: dense and ColBERT come as float16, cast on the device, else as float32. `projection` [D, C] float32:
    ColBERT vectors have C values instead of D (`codec`).
    """

    @uncollected()
    def __init__(
        self,
        path: str,
        device: Device = Device.CPU,
        precision: Precision = Precision.FP32,
        *,
        tokens_per_batch: int | None = None,
        threads: int | None = None,
        half_output: bool = False,
        projection: npt.NDArray[np.float32] | None = None,
    ) -> None:
        import torch

        threads = threads or torch.get_num_threads()
        # On a CPU it hands device calls to streams with a part of the cores each: a core that something else takes for a
        # moment then keeps one call waiting, not all cores at the end of each matrix product.
        count = 1 if device is Device.CUDA else max(n for n in range(1, MOST_STREAMS + 1) if threads % n == 0)
        self._pool = ThreadPoolExecutor(count, "stream", torch.set_num_threads, (threads // count,))
        self.streams: int = count
        # Few threads of its own do the forward passes, so few OpenMP teams and their buffers, however many call `encode`.
        ahead = AHEAD if device is Device.CUDA or count > 1 else 1
        self._forwards = ThreadPoolExecutor(ahead, "forward", torch.set_num_threads, (threads,))
        self._launching, self._counting = threading.Lock(), threading.Lock()
        self._ended = 0.0
        self._path = path
        self._device = "cuda" if device is Device.CUDA else "cpu"
        model = load_model(path, self._device, precision)
        if self._device == "cpu":
            keep_buffers()  # not before: what loading needed once goes back to the system
        self._copies = torch.cuda.Stream() if device is Device.CUDA else None  # type: ignore[no-untyped-call]
        config = model.model.config
        self._output_dtype = torch.float16 if half_output else torch.float32
        self.dim: int = config.hidden_size
        self.colbert_dim: int = self.dim if projection is None else projection.shape[1]
        self._layers, self._intermediate = config.num_hidden_layers, config.intermediate_size
        self._padding: int = config.pad_token_id
        self._projection = projection
        try:
            self._forward = PackedModel(model, self._device, projection)
        except RuntimeError as error:
            raise ModelError(
                f"{path}: cannot be arranged on this {self._device} device ({first_line(error)})"
            ) from None
        self.blocks: tuple[int, ...] = self._forward.blocks
        self.worth_filling = self._forward.worth_filling
        self._fuse, self._fused = self._forward.fuse, self._forward.fused
        self.tokens_per_batch = tokens_per_batch or self._default_tokens_per_batch()
        self.stats = EncoderStats()
        self._recomputing = threading.Lock()
        self._reference: Encoder | None = None

    def encode(
        self,
        batch: TokenBatch,
        on_rows: Callable[[int], None] | None = None,
        stats: EncoderStats | None = None,
    ) -> Embeddings:
        """The three outputs of every text, in order; `on_rows` is told the rows of each device call as it ends, and
        `stats` gets what this call did, beside the encoder's own.

        Raises `ModelError` when memory runs out at any batch size.
        """
        plan = BatchPlan(batch, self.blocks)
        self._calls(plan)  # beside the batch that is on the device now
        outputs = self._forwards.submit(self._run_counted, plan, on_rows, stats or EncoderStats()).result()
        try:
            arrays = self._to_host(outputs, plan)
        except Exception as error:
            if self._copies is None or not is_out_of_memory(error):
                raise self._failure(error) from None
            arrays = in_input_order(outputs, plan)
        encoding, suspects = plan.assemble(arrays)
        return self._recompute(batch, encoding, suspects, on_rows) if len(suspects) else encoding

    def second_moment(self, batch: TokenBatch) -> Array:
        """The sum of v vT over all ColBERT vectors v of the distinct texts, [D, D] float64, summed on the device."""
        import torch

        def run() -> Array:
            total = torch.zeros(self.dim, self.dim, dtype=torch.float32, device=self._device)
            with torch.inference_mode():
                for call in self._fused_calls(BatchPlan(batch, self.blocks)):
                    vectors = self._forward(call)[OUTPUTS.index("colbert")]
                    vectors = vectors[torch.isfinite(vectors).all(1)]
                    total += vectors.T @ vectors
            return total.double().cpu().numpy()

        return self._forwards.submit(run).result()

    def gemm_tflops(self) -> float:
        """The device's TFLOP/s in this model's own largest matrix products, at the token budget: one product at a time,
        or one in each stream, whichever is faster."""
        rows, product = self.tokens_per_batch, self._forward.gemm_tflops
        alone = self._forwards.submit(product, rows).result()
        return max(alone, sum(self._pool.map(product, [rows] * self.streams)))

    @property
    def peak_memory(self) -> int:
        """The most device memory held by tensors so far, in bytes (0 on a CPU)."""
        import torch

        return torch.cuda.max_memory_allocated() if self._device == "cuda" else 0

    def call_s(self, max_length: int) -> float:
        """Seconds in which a device call must have ended, even on a slow device that warms up."""
        tokens = max(self.tokens_per_batch, max_length)
        dense = self._layers * (4 * self.dim**2 + 2 * self.dim * self._intermediate)
        flops = 2 * tokens * (dense + self._layers * max_length * self.dim * 2)
        return 60.0 + float(flops) / SLOWEST_FLOPS[self._device]

    def _run_counted(
        self, plan: BatchPlan, on_rows: Callable[[int], None] | None, stats: EncoderStats
    ) -> dict[str, torch.Tensor]:
        """Run with ever smaller token budgets while memory runs out; count the time and the work.

        Of two batches on the device, the time of the later one begins where the earlier one ended.
        """
        started = time.perf_counter()
        for attempt in range(HALVINGS + 1):
            budget = self.tokens_per_batch
            try:
                outputs = self._run(plan, on_rows)
                break
            except Exception as error:
                if not is_out_of_memory(error) or attempt == HALVINGS or budget <= 1:
                    raise self._failure(error) from None
            self._halve(budget)
        with self._counting:
            ended = time.perf_counter()
            for counted in (self.stats, stats):
                self._count(counted, plan, ended - max(started, self._ended))
            self._ended = ended
        return outputs

    def _run(self, plan: BatchPlan, on_rows: Callable[[int], None] | None = None) -> dict[str, torch.Tensor]:
        """All calls of a plan, on the device: flat buffers in the plan's order.

        They are launched at once, after those of the batch before and before those of the next, and then waited for.
        """
        with self._launching:
            calls = self._fused_calls(plan)
            out = self._buffers(plan)
            rows = np.cumsum([0, *(call.rows for call in calls)]).tolist()
            tokens = np.cumsum([0, *(call.tokens for call in calls)]).tolist()
            pending: list[Future[None]] = []
            launched: list[Any] = []
            for place, call in enumerate(calls):
                work = (call, rows[place], tokens[place], out)
                if self.streams > 1 and len(calls) > 1:
                    pending.append(self._pool.submit(self._call, *work))
                    continue
                self._call(*work)
                launched.append(self._mark())
                if on_rows and launched[-1] is None:
                    on_rows(call.rows)
        try:
            for place, future in enumerate(pending):
                future.result()
                if on_rows:
                    on_rows(calls[place].rows)
        finally:
            for future in pending:
                future.cancel()
        for call, ended in zip(calls, launched, strict=False):
            if ended is not None:
                ended.synchronize()
                if on_rows:
                    on_rows(call.rows)
        return out

    def _fused_calls(self, plan: BatchPlan) -> list[PackedCall]:
        """The calls of a plan, after the layers have been fused where it has whole ones and they have not been."""
        calls = self._calls(plan)
        if any(call.whole for call in calls) and plan.budget not in self._fused:
            if self.streams > 1:
                self._pool.submit(self._fuse, plan.budget).result()
            else:
                self._fuse(plan.budget)
        return calls

    @property
    def attentions(self) -> tuple[str, ...]:
        """The kinds of attention that this device has, the one taken first."""
        return self._forward.attentions

    def attend_by(self, kind: str) -> None:
        """Take another of the `attentions`."""
        self.blocks = self._forward.attend_by(kind)

    def prepare(self, tokens: int) -> None:
        """Before batches of so many tokens are encoded: what the first of them would have to wait for."""
        if self.worth_filling is not None and tokens >= WORTH_FUSING * self.tokens_per_batch:
            (self._pool if self.streams > 1 else self._forwards).submit(self._fuse, self.tokens_per_batch).result()

    def _call(self, call: PackedCall, rows: int, tokens: int, out: dict[str, torch.Tensor]) -> None:
        """One device call, its results put behind those of `rows` texts with `tokens` tokens."""
        import torch

        at = {"dense": rows, "finite": rows, "colbert": tokens - rows}
        with torch.inference_mode():
            for name, part in zip(OUTPUTS, self._forward(call), strict=True):
                start = at.get(name, tokens)
                out[name][start : start + len(part)] = part

    def _mark(self) -> Any:
        """On a GPU, what can be waited for: the end of all that has been launched."""
        if self._device == "cpu":
            return None
        import torch

        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _buffers(self, plan: BatchPlan) -> dict[str, torch.Tensor]:
        import torch

        sizes = {"dense": plan.unique_rows, "colbert": plan.vectors, "finite": plan.unique_rows}
        sizes |= {"sparse_ids": plan.unique_tokens, "sparse_weights": plan.unique_tokens}
        widths = {"dense": (self.dim,), "colbert": (self.colbert_dim,)}
        kinds = {"sparse_ids": torch.int32, "sparse_weights": torch.float32, "finite": torch.bool}
        return {
            name: torch.empty(
                (size, *widths.get(name, ())), dtype=kinds.get(name, self._output_dtype), device=self._device
            )
            for name, size in sizes.items()
        }

    def _to_host(self, outputs: dict[str, torch.Tensor], plan: BatchPlan) -> dict[str, Array]:
        """Device buffers as numpy arrays, dense and ColBERT vectors in the input's order: from a GPU, which puts them in
        order, through pinned memory, on a stream of their own, beside the next forward pass."""
        if self._copies is None:
            return in_input_order(outputs, plan)
        import torch

        with torch.cuda.stream(self._copies):
            ways = {name: on_device(way, self._device) for name, way in plan.ways.items()}
            there = {name: value[ways[name]] if name in ways else value for name, value in outputs.items()}
            copies = {
                name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
                for name, value in there.items()
            }
            ended = self._mark()
        ended.synchronize()
        return {name: value.numpy() for name, value in copies.items()}

    def _calls(self, plan: BatchPlan) -> list[PackedCall]:
        """The device calls of a plan at the token budget, planned once; where several run at once, as many as end together.

        What a plan's calls are depends on nothing but the plan, so that a batch comes out the same whenever it is encoded.
        """
        budget = self.tokens_per_batch
        if plan.budget != budget:
            plan.budget = budget
            if budget <= FEW_TOKENS:
                plan.pack((0,))
            packing = plan.packing
            fill_from = math.inf
            if self.worth_filling is not None and packing.slots >= WORTH_FUSING * budget:
                fill_from = self.worth_filling * budget
            elif packing.slots > budget:
                rounds = -(-packing.slots // (budget * self.streams))
                budget = min(budget, padded(-(-packing.slots // (rounds * self.streams))))
            plan.calls = list(pack_calls(packing, budget, self._padding, fill_from))
        return plan.calls

    def _recompute(
        self,
        batch: TokenBatch,
        encoding: Embeddings,
        suspects: npt.NDArray[np.int64],
        on_rows: Callable[[int], None] | None,
    ) -> Embeddings:
        """Encode the rows that came out non-finite again, in fp32 on the CPU; those that still are, are `bad`."""
        again = []
        with self._recomputing:
            if self._reference is None:
                half = self._output_dtype.itemsize == 2
                self._reference = Encoder(self._path, half_output=half, projection=self._projection)
            self.stats.recomputed += len(suspects)
            for row in suspects.tolist():
                again.append(self._reference._encode_once(batch.rows(row, row + 1)))
                if on_rows:
                    on_rows(0)
        return replace_rows(encoding, suspects, again)

    def _encode_once(self, batch: TokenBatch) -> tuple[Embeddings, bool]:
        """One text, and whether its output is finite; never recomputed."""
        plan = BatchPlan(batch, self.blocks)
        encoding, suspects = plan.assemble(self._to_host(self._run(plan), plan))
        return encoding, not len(suspects)

    def _default_tokens_per_batch(self) -> int:
        """On a GPU what fits in half of its free memory, so that a 6 GB card works; on a CPU what its caches like."""
        import torch

        if self._device == "cpu":
            return CPU_TOKENS_PER_BATCH
        free, _ = torch.cuda.mem_get_info()
        return gpu_tokens_per_batch(free, self.dim, self._intermediate)

    def _halve(self, budget: int) -> None:
        """After running out of memory at this budget: a smaller one from now on, once for batches that ran out together."""
        with self._launching:
            if self.tokens_per_batch == budget:
                self.tokens_per_batch = max(1, budget // 2)
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _failure(self, error: Exception) -> ModelError:
        if is_out_of_memory(error):
            return ModelError(
                f"out of memory on {self._device} even at {self.tokens_per_batch} tokens a batch: free some memory, "
                "or lower --max-length"
            )
        return ModelError(
            f"the model failed on {self._device}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )

    def _count(self, stats: EncoderStats, plan: BatchPlan, seconds: float) -> None:
        hidden = self.dim
        per_token = self._layers * 2 * (4 * hidden**2 + 2 * hidden * self._intermediate) + 2 * hidden**2 + 2 * hidden
        attention = int((plan.unique_lengths**2).sum()) * self._layers * 4 * hidden
        stats.tokens += plan.tokens
        stats.computed += plan.unique_tokens
        stats.processed += sum(len(call.ids) for call in plan.calls)
        stats.seconds += seconds
        stats.flops += plan.unique_tokens * per_token + attention


def gpu_tokens_per_batch(free: int, dim: int, intermediate: int) -> int:
    """Tokens a device call whose activations, at 4 bytes a value, take at most half of `free` bytes."""
    per_token = (2 * intermediate + 12 * dim) * 4
    return min(LARGEST_GPU_TOKENS_PER_BATCH, max(SMALLEST_TOKENS_PER_BATCH, free // 2 // per_token))
