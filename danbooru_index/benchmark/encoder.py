"""The encoder against `BGEM3FlagModel.encode` at its best: speed, and equal outputs.

Parts of `benchmark`; everything here runs in one process, on the device that will do the work.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from danbooru_index.benchmark.baselines import DEFAULT_BATCH_SIZE, FlagEmbedding
from danbooru_index.benchmark.run import Bench, in_turn, ratio, summary
from danbooru_index.choices import Device, Precision
from danbooru_index.embeddings import Embeddings
from danbooru_index.machine import cpu_count
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer

MAX_LENGTH = 512
CALLS = (1024, 256)


def encoder(bench: Bench) -> dict[str, Any]:
    """Texts to three outputs: ours in each precision, FlagEmbedding at its best and as usual."""
    tokenizer = Tokenizer(bench.checkpoint.path, MAX_LENGTH)
    encoders = {precision: encoder_to_measure(bench, precision) for precision in bench.precisions}
    outputs: dict[str, Any] = {}
    uses: dict[str, list[dict[str, float]]] = {precision.value: [] for precision in encoders}

    def ours(precision: Precision) -> Callable[[], None]:
        def run() -> None:
            encoders[precision].forget()
            outputs[precision.value] = encoders[precision].encode(tokenizer(bench.texts))

        return run

    def after(name: str) -> None:
        if (precision := our_names.get(name)) is not None:
            uses[precision.value].append(_use(encoders[precision]))

    def theirs(size: int | None, batch_size: int | None = None) -> Callable[[], None]:
        def run() -> None:
            found = rival.encode(bench.texts, size, batch_size)
            if size is None:
                outputs["flagembedding"] = found

        return run

    our_names = {f"ours, {precision.value}": precision for precision in encoders}
    contestants: dict[str, Callable[[], Any]] = {n: ours(p) for n, p in our_names.items()}
    peaks: dict[str, float] = {}
    for precision, one in encoders.items():
        one.encode(tokenizer(bench.texts))
        # before FlagEmbedding has the same model there
        peaks[precision.value] = one.peak_memory / 1e9
    measured: dict[str, Any] = {}
    if bench.config.against:
        rival = FlagEmbedding(bench.checkpoint.path, bench.device.kind, MAX_LENGTH)
        rival.sweep(bench.texts)
        measured["flagembedding_batch_size"] = rival.batch_size
        contestants["flagembedding"] = theirs(None)
        usual = f"its own batch size ({DEFAULT_BATCH_SIZE})"
        for n in (n for n in CALLS if n < len(bench.texts)):
            contestants[f"flagembedding, calls of {n}"] = theirs(n)
            contestants[f"flagembedding, calls of {n}, {usual}"] = theirs(n, DEFAULT_BATCH_SIZE)
    seconds = in_turn(contestants, bench.config.repeats, after)
    measured |= _times(seconds, len(bench.texts), list(encoders))
    measured["device"] = {
        precision: (
            {name: round(statistics.median(use[name] for use in rounds), 4) for name in rounds[0]}
            | {"peak_memory_gb": round(peaks[precision], 4)}
        )
        for precision, rounds in uses.items()
    }
    if bench.config.against:
        measured["agreement"] = {
            precision.value: _agreement(outputs["flagembedding"], outputs[precision.value])
            for precision in encoders
        }
    return measured


def _times(
    seconds: dict[str, list[float]], texts: int, precisions: Sequence[Precision]
) -> dict[str, Any]:
    """Each contestant's seconds, and FlagEmbedding's over ours in each precision."""
    ratios = {
        f"{precision.value} against {name}": ratio(times, seconds[f"ours, {precision.value}"])
        for precision in precisions
        for name, times in seconds.items()
        if name.startswith("flagembedding")
    }
    return {
        "seconds": {name: summary(times, texts) for name, times in seconds.items()},
        "ratios": ratios,
    }


def encoder_to_measure(bench: Bench, precision: Precision) -> Encoder:
    """The encoder that is measured, as a build makes it: on all cores."""
    half = precision is not Precision.FP32
    return Encoder(
        bench.checkpoint.path,
        Device(bench.device.kind),
        precision,
        threads=cpu_count(),
        half_output=half,
    )


def _use(one: Encoder) -> dict[str, float]:
    """Useful TFLOP/s of the last round, and its share of the device's own matrix products."""
    achieved, peak = one.stats.flops / one.stats.seconds / 1e12, one.gemm_tflops()
    return {
        "tflops_per_second": achieved,
        "gemm_tflops_per_second": peak,
        "share_of_gemm": achieved / peak,
        "padding": 1 - one.stats.computed / one.stats.processed,
        "tokens_per_call": one.tokens_per_batch,
    }


def _agreement(expected: dict[str, Any], found: Embeddings) -> dict[str, Any]:
    """The largest difference and the least cosine between FlagEmbedding's outputs and ours."""
    vectors = np.concatenate(expected["colbert_vecs"]).astype(np.float32)
    ours = found.colbert.astype(np.float32)
    dense, other = found.dense.astype(np.float32), expected["dense_vecs"].astype(np.float32)
    keys = sum(
        {int(t) for t in weights} != found.sparse_row(row).keys()
        for row, weights in enumerate(expected["lexical_weights"])
    )
    return {
        "dense_difference": float(np.abs(dense - other).max()),
        "colbert_difference": float(np.abs(ours - vectors).max()),
        "least_dense_cosine": float(_cosine(dense, other).min()),
        "least_colbert_cosine": float(_cosine(ours, vectors).min()),
        "rows_with_other_sparse_keys": int(keys),
    }


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    product: np.ndarray[Any, Any] = (
        (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    )
    return product
