"""Recall, nDCG, mAP and MRR of every query, by ir-measures, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from danbooru_index.errors import UsageError
from danbooru_index.evaluation.queries import Query

DEPTH = 100
RESAMPLES = 2000
MEASURES = ("R@1", "R@10", "R@100", "nDCG@10", "AP@10", "RR")
INSTALL_EVALUATE = "pip install -c constraints.txt -e '.[evaluate]'"

Run = list[list[str]]
PerQuery = dict[str, np.ndarray[Any, Any]]


def per_query(queries: Sequence[Query], run: Run) -> PerQuery:
    """Every measure of every query, [queries]; records of one tag count once, at the best place."""
    ir_measures = import_ir_measures()
    Qrel, ScoredDoc = ir_measures.Qrel, ir_measures.ScoredDoc

    judged = [
        Qrel(str(n), tag, 1)
        for n, query in enumerate(queries)
        for tag in dict.fromkeys(query.relevant)
    ]
    scored = [
        ScoredDoc(str(n), tag, float(-place))
        for n, tags in enumerate(run)
        for place, tag in enumerate(dict.fromkeys(tag for tag in tags if tag))
    ]
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    values = {name: np.zeros(len(queries)) for name in MEASURES}
    for metric in ir_measures.iter_calc(measures, judged, scored):
        values[str(metric.measure)][int(metric.query_id)] = metric.value
    return values


def interval(values: np.ndarray[Any, Any]) -> list[float]:
    """[mean, low, high]: mean of per-query values, 95% bootstrap interval, always the same one."""
    rng = np.random.default_rng(0)  # always the same resamples
    means = np.array(
        [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    )
    low, high = np.percentile(means, [2.5, 97.5])  # 95%
    return [round(float(values.mean()), 4), round(float(low), 4), round(float(high), 4)]


def import_ir_measures() -> Any:
    """The library; raise `UsageError` that says how to install it."""
    try:
        import ir_measures
    except ImportError:
        raise UsageError(f"evaluate needs ir-measures: {INSTALL_EVALUATE}") from None
    return ir_measures
