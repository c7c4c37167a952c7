"""What smaller ColBERT vectors cost: bytes against how well they find the same records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from danbooru_index.benchmark.encoder import MAX_LENGTH, encoder_to_measure
from danbooru_index.benchmark.run import Bench
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.pipeline.projection import fit_and_measure

DIMS = (256, 128, 64)
QUESTIONS = 1000


def colbert(bench: Bench) -> dict[str, Any]:
    """Bytes against fidelity: fitted on one half of the records, measured on the other."""
    tokenizer, one = (
        Tokenizer(bench.checkpoint.path, MAX_LENGTH),
        encoder_to_measure(bench, bench.precisions[-1]),
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
