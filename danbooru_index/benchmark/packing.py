"""How tokens are packed into calls, each other way against the default; tokenising by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from danbooru_index.benchmark.encoder import MAX_LENGTH, encoder_to_measure
from danbooru_index.benchmark.run import Bench, in_turn, ratio, summary
from danbooru_index.embeddings import TokenBatch
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.model.tuning import NEVER_FILL, EncoderTuning

WARM_UP = 64


def packing(bench: Bench) -> dict[str, Any]:
    """What packing, token budget, blocks and streams are worth, in the best precision."""
    precision = bench.precisions[-1]
    one = encoder_to_measure(bench, precision)
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
