"""A forward pass of a fixed time: what everything around the model costs, without a GPU.

Outputs are of the true shape and a function of the tokens, so that a build passes its checks;
everything but the model is the product. Built on the worker by the factory that
`BuildConfig.encoder` takes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danbooru_index.choices import DeviceInfo
from danbooru_index.embeddings import Embeddings, EncoderStats, TokenBatch
from danbooru_index.model.checkpoint_files import HEADS, SETTINGS, TOKENIZERS

TABLE = 4096
SPECIAL = 4
WAIT_S = 300.0
DEVICE = DeviceInfo("cuda", "simulated device", "fp16")


class SimulatedEncoder:
    """Waits `forward_s` a shard, one forward pass at a time, then looks vectors up."""

    tokens_per_batch = 32_768
    peak_memory = 0

    def __init__(self, dim: int, colbert_dim: int, forward_s: float) -> None:
        self._forward_s = forward_s
        self._device = threading.Lock()
        rng = np.random.default_rng(7)
        self._dense = _unit(rng.normal(size=(TABLE, dim)))
        self._colbert = _unit(rng.normal(size=(TABLE, colbert_dim)))
        self._weights = (rng.random(TABLE) + 0.05).astype(np.float32)

    def call_s(self, max_length: int) -> float:
        return 60.0

    def encode(
        self,
        batch: TokenBatch,
        on_rows: Callable[[int], None] | None = None,
        stats: EncoderStats | None = None,
    ) -> Embeddings:
        """The three outputs, each token's vector at random but fixed; the device is busy for
        `forward_s`, or for no time with the few texts of the self-check, which nobody counts.
        """
        with self._device:
            started = time.perf_counter()
            time.sleep(0.0 if stats is None else self._forward_s)
            busy = time.perf_counter() - started
        if stats is not None:
            stats.seconds += busy
            stats.tokens += batch.tokens
            stats.computed += batch.tokens
            stats.processed += batch.tokens
        if on_rows:
            on_rows(len(batch.lengths))
        return self._outputs(batch)

    def _outputs(self, batch: TokenBatch) -> Embeddings:
        lengths, ids = batch.lengths.astype(np.int64), batch.token_ids.astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        keys = np.unique((np.repeat(np.arange(len(lengths)), lengths) << 32) + ids)
        tokens = keys & 0xFFFFFFFF
        keys, tokens = keys[tokens >= SPECIAL], tokens[tokens >= SPECIAL]
        others = np.delete(np.arange(len(ids)), starts)
        sums = np.add.reduceat(ids * 2654435761, starts) if len(ids) else np.empty(0, np.int64)
        return Embeddings(
            dense=self._dense[sums % TABLE],
            sparse_ids=tokens.astype(np.int32),
            sparse_weights=self._weights[tokens % TABLE],
            sparse_lengths=np.bincount(keys >> 32, minlength=len(lengths)).astype(np.int64),
            colbert=self._colbert[ids[others] % TABLE],
            colbert_lengths=lengths - 1,
            non_finite=np.empty(0, np.int64),
        )


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    unit: np.ndarray[Any, Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float16)


@dataclass(frozen=True, slots=True)
class Simulation:
    """The recipe of a simulated encoder, on a device that is simulated as well."""

    forward_s: float
    device: DeviceInfo = DEVICE
    together: str = ""
    devices: int = 1

    def __call__(self, settings: Any) -> SimulatedEncoder:
        """The encoder; where `together` is a folder, not before all `devices` are there, so that
        none has a lead.
        """
        made = SimulatedEncoder(settings.dim, settings.colbert_dim, self.forward_s)
        if self.together:
            (Path(self.together) / str(os.getpid())).touch()
            end = time.monotonic() + WAIT_S
            while len(os.listdir(self.together)) < self.devices and time.monotonic() < end:
                time.sleep(0.05)
        return made


def make_shape(model: Path, out: Path, hidden: int) -> Path:
    """A folder that declares a model of this width: `model`'s tokenizer, no weights."""
    out.mkdir(parents=True)
    for name in (*TOKENIZERS, *SETTINGS):
        if (model / name).is_file():
            shutil.copy(model / name, out / name)
    settings = json.loads((model / "config.json").read_text(encoding="utf-8")) | {
        "hidden_size": hidden
    }
    (out / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name in ("model.safetensors", *HEADS):
        (out / name).write_bytes(b"simulated")
    return out
