"""The encoder against `BGEM3FlagModel.encode`, what each of its habits is worth, and what a
projection costs.

Parts of `benchmark`; everything here runs in one process, on the device that will do the work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from danbooru_index.benchmark.baselines import DEFAULT_BATCH_SIZE, FlagEmbedding
from danbooru_index.benchmark.run import Bench, in_turn, ratio, summary
from danbooru_index.config import Device, Precision
from danbooru_index.embeddings import Embeddings, TokenBatch
from danbooru_index.machine import cpu_count
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.model.tuning import NEVER_FILL, EncoderTuning
from danbooru_index.pipeline.projection import fit_and_measure

MAX_LENGTH = 512
CALLS = (1024, 256)
WARM_UP = 64
DIMS = (256, 128, 64)
QUESTIONS = 1000


def encoder(bench: Bench) -> dict[str, Any]:
    """Texts to three outputs: this encoder in each precision, FlagEmbedding at its best and as it
    is often called.
    """
    tokenizer = Tokenizer(bench.checkpoint.path, MAX_LENGTH)
    encoders = {precision: _load_encoder(bench, precision) for precision in bench.precisions}
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
    contestants: dict[str, Callable[[], Any]] = {
        name: ours(precision) for name, precision in our_names.items()
    }
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


def _load_encoder(bench: Bench, precision: Precision) -> Encoder:
    half = precision is not Precision.FP32
    return Encoder(
        bench.checkpoint.path,
        Device(bench.device.kind),
        precision,
        threads=cpu_count(),
        half_output=half,
    )


def _use(one: Encoder) -> dict[str, float]:
    """Useful TFLOP/s of the last round, and what share that is of the device's own matrix products,
    measured at once.
    """
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


def packing(bench: Bench) -> dict[str, Any]:
    """What packing, the token budget, attention in blocks and streams are worth, in the device's
    best precision.
    """
    precision = bench.precisions[-1]
    one = _load_encoder(bench, precision)
    tokenizer = Tokenizer(bench.checkpoint.path, MAX_LENGTH)
    tokenizer(bench.texts[:WARM_UP])
    started = time.perf_counter()
    batch = tokenizer(bench.texts)
    tokenising = time.perf_counter() - started
    default = one.tokens_per_batch
    sizes = (default, default // 4, default // 2, default * 2)
    tunings = {
        f"packed, {size} tokens a call": EncoderTuning(tokens_per_batch=size) for size in sizes
    }
    if one.attentions[0] != "varlen":
        tunings["attention by length, not in blocks"] = EncoderTuning(blocks=(0,))
        tunings["one call at a time, on all cores"] = EncoderTuning(streams=1)
        tunings["neither blocks nor streams"] = EncoderTuning(blocks=(0,), streams=1)
    tunings |= {
        f"attention by {kind}": EncoderTuning(attention=kind) for kind in one.attentions[1:]
    }
    if one.compiles:
        tunings["one operation after the other, not fused"] = EncoderTuning(
            min_fill_ratio=NEVER_FILL
        )
    contestants = {name: _encoding(one.tuned(tuning), [batch]) for name, tuning in tunings.items()}
    contestants["one length a call"] = _encoding(one, _by_length(batch))
    seconds = in_turn(contestants, bench.config.repeats)
    first = next(iter(seconds))
    return {
        "tokenising_us_a_text": round(tokenising / len(bench.texts) * 1e6, 1),
        "seconds": {name: summary(times, len(bench.texts)) for name, times in seconds.items()},
        "slower_than_the_default": {
            name: ratio(times, seconds[first]) for name, times in seconds.items() if name != first
        },
    }


def _encoding(encoder: Encoder, batches: list[TokenBatch]) -> Callable[[], None]:
    """Encode these batches; what the first of them would have to wait for is made now."""
    encoder.prepare(batches[0].tokens)
    encoder.encode(batches[0].rows(0, min(WARM_UP, len(batches[0].lengths))))

    def run() -> None:
        for batch in batches:
            encoder.encode(batch)

    return run


def _by_length(batch: TokenBatch) -> list[TokenBatch]:
    order = np.argsort(batch.lengths, kind="stable")
    offsets = np.concatenate(([0], np.cumsum(batch.lengths)))
    rows: dict[int, list[np.ndarray[Any, Any]]] = {}
    for row in order.tolist():
        rows.setdefault(int(batch.lengths[row]), []).append(
            batch.token_ids[offsets[row] : offsets[row + 1]]
        )
    return [
        TokenBatch(np.concatenate(r), np.full(len(r), n, np.int32), batch.special)
        for n, r in rows.items()
    ]


def colbert(bench: Bench) -> dict[str, Any]:
    """Bytes against fidelity: projections fitted on one half of the records, measured on
    the other.
    """
    tokenizer, one = (
        Tokenizer(bench.checkpoint.path, MAX_LENGTH),
        _load_encoder(bench, bench.precisions[-1]),
    )
    fitted, measured = tokenizer(bench.texts[::2]), tokenizer(bench.texts[1::2])
    questions = [
        r.aliases[0] if r.aliases else r.tag.replace("_", " ") for r in bench.records if r.tag
    ][:QUESTIONS]
    vectors = float((measured.lengths - 1).mean())
    table: dict[str, Any] = {
        "full": {"values": one.dim, "bytes_a_text": int(2 * one.dim * vectors), "overlap": 1.0}
    }
    dims = tuple(dim for dim in DIMS if dim < one.dim)
    for codec, found in fit_and_measure(one, fitted, measured, tokenizer(questions), dims):
        dim = codec.matrix.shape[1]
        table[str(dim)] = {
            "values": dim,
            "bytes_a_text": int(2 * dim * vectors),
            **_rounded(asdict(found)),
        }
    return table


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in values.items()
    }
