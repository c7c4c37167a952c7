"""How good an index finds tags: measures over a queries file, by mode and kind, with intervals.

    {"query": "...", "relevant": ["tag", ...], "kind": "zh"}        one query a line

Metrics are those of ir-measures. Beside the index's modes stand baselines over the same texts (BM25
by bm25s, TF-IDF of character n-grams by scikit-learn), and a second index, where one is given, with
the differences that matter marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from danbooru_index.choices import Device, Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.errors import UsageError
from danbooru_index.evaluation.baselines import bm25, char_tfidf
from danbooru_index.evaluation.latency import encoding_latency, mode_latencies
from danbooru_index.evaluation.metrics import (
    DEPTH,
    MEASURES,
    PerQuery,
    Run,
    import_ir_measures,
    interval,
    per_query,
)
from danbooru_index.evaluation.queries import Query, read_queries
from danbooru_index.evaluation.report import EvaluationReport, System
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.batch import rank_hybrids, rank_many
from danbooru_index.search.query_encoder import QueryEncoder
from danbooru_index.search.retriever import EncodedQuery, Rows

QUERIES_PER_ENCODING = 1024

WITHOUT = "hybrid without "
IN_SCORE = ("dense", "sparse", "colbert")
BESIDE_SCORE = ("names", "transliteration", "spelling", "prefix", "popularity")
ABLATED = (*IN_SCORE, *BESIDE_SCORE)
DEFAULT_WEIGHTS, DEFAULT_FUSION = Weights(), Fusion()


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What to evaluate: an index, by which modes; against a second one, and the baselines.

    `ablation`: also hybrid without each of its parts (`ABLATED`), against the whole.
    """

    index: str
    queries: str
    modes: tuple[Mode, ...] = tuple(Mode)
    against: str | None = None
    model: str | None = None
    device: Device = Device.AUTO
    weights: Weights = DEFAULT_WEIGHTS
    fusion: Fusion = DEFAULT_FUSION
    baselines: bool = True
    ablation: bool = False
    nsfw: bool = True
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.ablation and Mode.HYBRID not in self.modes:
            raise UsageError(
                "--ablation takes parts out of the hybrid score: pass --mode hybrid or --mode all"
            )
        if self.ablation and not all(self.without(part)[0].total for part in ABLATED):
            raise UsageError("--ablation needs two --weights that are not 0")

    def without(self, part: str) -> tuple[Weights, Fusion]:
        """The weights with one of `ABLATED` at nothing."""
        if part in IN_SCORE:
            return replace(self.weights, **{part: 0.0}), self.fusion
        nothing: Any = {part: 0}
        return self.weights, replace(self.fusion, **nothing)


def evaluate(config: EvaluateConfig) -> EvaluationReport:
    """Evaluate an index, the baselines over its texts, and a second index beside it.

    Raises `InputError`, `StorageError`, `ModelError` or `UsageError`.
    """
    import_ir_measures()
    queries = read_queries(config.queries)
    generation = IndexRoot(config.index).current()
    reader = GenerationReader(generation)
    hidden = reader.files.nsfw & (not config.nsfw)
    tags = ["" if gone else tag for tag, gone in zip(reader.tags(), hidden.tolist(), strict=True)]
    known = set(tags)
    manifest = generation.manifest
    report = EvaluationReport(
        config.index,
        manifest.model.name,
        manifest.model.id,
        len(tags),
        {kind: sum(q.kind == kind for q in queries) for kind in sorted({q.kind for q in queries})},
        sum(not known.intersection(query.relevant) for query in queries),
        len({tag for query in queries for tag in query.relevant} - known),
    )
    encoder = QueryEncoder(generation, config.model, config.device, config.instruction)
    encoded = _encoded(encoder, queries)
    runs = _runs(config, reader, encoded, ABLATED if config.ablation else ())
    scored = {name: per_query(queries, run) for name, run in runs.items()}
    counterparts = {name: Mode.HYBRID.value for name in scored if name.startswith(WITHOUT)}
    if config.against is not None:
        other_generation = IndexRoot(config.against).current()
        other_reader = GenerationReader(other_generation)
        others = _encoded(QueryEncoder(other_generation, None, config.device), queries)
        for name, run in _runs(config, other_reader, others).items():
            other = f"{name} of {config.against}"
            scored[other], counterparts[name] = per_query(queries, run), other
    if config.baselines:
        texts = reader.texts()
        scored["bm25"] = per_query(queries, bm25(texts, tags, queries))
        scored["char tf-idf"] = per_query(queries, char_tfidf(texts, tags, queries))
    for name, values in scored.items():
        report.systems.append(_system(name, values, queries, counterparts.get(name), scored))
    wanted = Filter(nsfw=config.nsfw)
    latencies = mode_latencies(reader, encoded, config.modes, config.weights, config.fusion, wanted)
    for system in report.systems:
        system.latency_ms = latencies.get(system.name)
    report.encoding_ms = encoding_latency(encoder, encoded)
    return report


def _encoded(encode: QueryEncoder, queries: list[Query]) -> list[EncodedQuery]:
    encoded: list[EncodedQuery] = []
    for start in range(0, len(queries), QUERIES_PER_ENCODING):
        encoded += encode([query.text for query in queries[start : start + QUERIES_PER_ENCODING]])
    return encoded


def _runs(
    config: EvaluateConfig,
    reader: GenerationReader,
    encoded: list[EncodedQuery],
    left_out: Sequence[str] = (),
) -> dict[str, Run]:
    """The answers of each mode; hybrid also without each part that is left out."""
    wanted = Filter(nsfw=config.nsfw)
    ranked: dict[str, list[Rows]] = {}
    for mode in config.modes:
        if mode is Mode.HYBRID:
            whole = (config.weights, config.fusion)
            weightings = [whole, *(config.without(part) for part in left_out)]
            names = [mode.value, *(WITHOUT + part for part in left_out)]
            ranked |= zip(
                names, rank_hybrids(reader, encoded, DEPTH, weightings, wanted), strict=True
            )
        else:
            ranked[mode.value] = rank_many(reader, encoded, mode, DEPTH, config.weights, wanted)
    tags = reader.tags()
    return {
        name: [[tags[row] for row in rows.tolist()] for rows in found]
        for name, found in ranked.items()
    }


def _system(
    name: str,
    values: PerQuery,
    queries: list[Query],
    other: str | None,
    scored: dict[str, PerQuery],
) -> System:
    kinds = np.array([query.kind for query in queries])
    system = System(name, counterpart=other or "")
    system.all = {measure: interval(values[measure]) for measure in MEASURES}
    for kind in sorted(set(kinds.tolist())):
        system.kinds[kind] = {
            measure: interval(values[measure][kinds == kind]) for measure in MEASURES
        }
    for measure in MEASURES if other else ():
        _, low, high = interval(values[measure] - scored[other or ""][measure])
        if low > 0:
            system.better.append(measure)
        if high < 0:
            system.worse.append(measure)
    return system
