"""The encoder: token batches -> dense vectors, sparse weights and ColBERT matrices (BGE-M3).

The numbers are those of `BGEM3FlagModel.encode`, whether FlagEmbedding loads weights and heads or
`plain_model` does. What differs is the work around them: rows are packed, so that next to nothing
is padded; equal rows are encoded once; the heads' results stay on the device, in flat buffers,
until a whole batch is done.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from danbooru_index.choices import Device, Precision
from danbooru_index.embeddings import Array, Embeddings, EncoderStats, TokenBatch, replace_rows
from danbooru_index.machine import uncollected
from danbooru_index.model.batch_plan import MIN_CALLS_TO_FILL, BatchPlan
from danbooru_index.model.device import keep_buffers
from danbooru_index.model.device_run import OUTPUTS, DeviceRun
from danbooru_index.model.loading import load_model
from danbooru_index.model.packed_model import PackedModel
from danbooru_index.model.plain_model import load_plain_model
from danbooru_index.model.scheduler import Scheduler
from danbooru_index.model.shape import ModelShape
from danbooru_index.model.tuning import NEVER_FILL, EncoderTuning

BEST = EncoderTuning()


class Encoder:
    """BGE-M3 on one device. `encode` may be called from several threads: the device calls of one
    batch come after those of the one before, without a pause between them.

    `half_output`: dense and ColBERT come as float16, cast on the device, else as float32.
    `projection` [D, C] float32: ColBERT vectors have C values instead of D. `plain`: loaded without
    FlagEmbedding where that gives the same model to the bit, four to six seconds sooner.

    Its length is that of the facade: planning, scheduling and the device are classes of their own.
    """

    @uncollected()
    def __init__(
        self,
        path: str,
        device: Device = Device.CPU,
        precision: Precision = Precision.FP32,
        *,
        tuning: EncoderTuning = BEST,
        threads: int | None = None,
        half_output: bool = False,
        projection: npt.NDArray[np.float32] | None = None,
        plain: bool = False,
    ) -> None:
        import torch

        self._path, self._device = path, "cuda" if device is Device.CUDA else "cpu"
        scheduler = Scheduler(self._device, threads or torch.get_num_threads(), tuning.streams)
        model = load_plain_model(path, self._device, precision) if plain else None
        model = model or load_model(path, self._device, precision)
        if self._device == "cpu":
            keep_buffers()  # not before: what loading needed once goes back to the system
        stream: Any = torch.cuda.Stream
        copies = stream() if device is Device.CUDA else None
        shape = ModelShape.of(model.model.config)
        self._half, self._projection = half_output, projection
        self.dim = shape.dim
        self.colbert_dim: int = shape.dim if projection is None else projection.shape[1]
        packed = PackedModel.arranged(path, model, self._device, projection)
        dims, dtype = (self.dim, self.colbert_dim), torch.float16 if half_output else torch.float32
        self._run = DeviceRun(packed, scheduler, shape, dims, dtype, copies, tuning)
        self._recomputing = threading.Lock()
        self._reference: Encoder | None = None

    def tuned(self, tuning: EncoderTuning) -> Encoder:
        """Another encoder of the same loaded model, which uses the device otherwise."""
        other = copy.copy(self)
        other._run = self._run.tuned(tuning)
        other._recomputing, other._reference = threading.Lock(), None
        return other

    @property
    def stats(self) -> EncoderStats:
        """What has been encoded so far."""
        return self._run.stats

    def forget(self) -> None:
        """Begin to count anew."""
        self._run.stats = EncoderStats()

    @property
    def tokens_per_batch(self) -> int:
        """Slots of a device call; halved when memory runs out."""
        return self._run.tokens_per_batch

    @property
    def attentions(self) -> tuple[str, ...]:
        """The kinds of attention that this device has, the best first."""
        return self._run.packed.attentions

    @property
    def compiles(self) -> bool:
        """Whether calls of full size run through compiled layers here."""
        return self._run.min_fill_ratio < NEVER_FILL

    @property
    def peak_memory(self) -> int:
        """The most device memory held by tensors so far, in bytes (0 on a CPU)."""
        import torch

        return torch.cuda.max_memory_allocated() if self._device == "cuda" else 0

    def call_s(self, max_length: int) -> float:
        """Seconds in which a device call must have ended, even on a slow device that warms up."""
        return self._run.shape.longest_call_s(self.tokens_per_batch, max_length, self._device)

    def encode(
        self,
        batch: TokenBatch,
        on_rows: Callable[[int], None] | None = None,
        stats: EncoderStats | None = None,
    ) -> Embeddings:
        """The three outputs of every text, in order; `on_rows` is told the rows of each device call
        as it ends, and `stats` gets what this call did, beside the encoder's own.

        Raises `ModelError` when memory runs out at any batch size.
        """
        plan = BatchPlan(batch, self._run.blocks)
        embeddings, suspects = plan.assemble(
            self._run.arrays(plan, on_rows, stats or EncoderStats())
        )
        return (
            self._recompute(batch, embeddings, suspects, on_rows) if len(suspects) else embeddings
        )

    def prepare(self, tokens: int) -> None:
        """Do beforehand what the first batch of `tokens` tokens would wait for."""
        if self.compiles and tokens >= MIN_CALLS_TO_FILL * self.tokens_per_batch:
            self._run.scheduler.as_a_call(self._run.packed.compile, self.tokens_per_batch)

    def second_moment(self, batch: TokenBatch) -> Array:
        """The sum of v vT over all ColBERT vectors v of distinct texts, [D, D] float64."""
        import torch

        def sum_up() -> Array:
            total = torch.zeros(self.dim, self.dim, dtype=torch.float32, device=self._device)
            with torch.inference_mode():
                for call in self._run.compiled_calls(BatchPlan(batch, self._run.blocks)):
                    vectors = self._run.forward(call)[OUTPUTS.index("colbert")]
                    vectors = vectors[torch.isfinite(vectors).all(1)]
                    total += vectors.T @ vectors
            return total.double().cpu().numpy()

        return self._run.scheduler.forward(sum_up)

    def gemm_tflops(self) -> float:
        """The device's TFLOP/s in this model's own largest matrix products, at the token budget:
        one product at a time, or one in each stream, whichever is faster.
        """
        rows, product, scheduler = (
            self.tokens_per_batch,
            self._run.packed.gemm_tflops,
            self._run.scheduler,
        )
        return max(scheduler.forward(product, rows), sum(scheduler.in_every_stream(product, rows)))

    def _recompute(
        self,
        batch: TokenBatch,
        embeddings: Embeddings,
        suspects: npt.NDArray[np.int64],
        on_rows: Callable[[int], None] | None,
    ) -> Embeddings:
        """Encode non-finite rows again, in fp32 on the CPU; the rest stay `non_finite`."""
        again = []
        with self._recomputing:
            if self._reference is None:
                self._reference = Encoder(
                    self._path, half_output=self._half, projection=self._projection
                )
            self.stats.recomputed += len(suspects)
            for row in suspects.tolist():
                again.append(self._reference._encode_once(batch.rows(row, row + 1)))
                if on_rows:
                    on_rows(0)
        return replace_rows(embeddings, suspects, again)

    def _encode_once(self, batch: TokenBatch) -> tuple[Embeddings, bool]:
        """One text, and whether its output is finite; never recomputed."""
        plan = BatchPlan(batch, self._run.blocks)
        embeddings, suspects = plan.assemble(self._run.to_host(self._run.run(plan), plan))
        return embeddings, not len(suspects)
