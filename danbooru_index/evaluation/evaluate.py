"""How good an index finds tags: Recall, nDCG, mAP and MRR over a queries file, by mode and by kind, with intervals.

    {"query": "...", "relevant": ["tag", ...], "kind": "zh"}        one query a line

Metrics are those of ir-measures. Beside the index's modes stand baselines over the same texts (BM25 by bm25s, TF-IDF of
character n-grams by scikit-learn), and a second index, where one is given, with the differences that matter marked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from danbooru_index.config import Device, Filter, Mode, Weights
from danbooru_index.errors import InputError, UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader, Rows
from danbooru_index.ingest.sources import text_lines
from danbooru_index.records import is_blank
from danbooru_index.search.hybrid import EncodedQuery, rank_hybrids, rank_many, top_positive
from danbooru_index.search.tag_index import QueryEncoder

DEPTH = 100
ENCODED_AT_ONCE = 1024
RESAMPLES = 2000
MEASURES = ("R@1", "R@10", "R@100", "nDCG@10", "AP@10", "RR")
TITLES = {
    "R@1": "Recall@1",
    "R@10": "Recall@10",
    "R@100": "Recall@100",
    "nDCG@10": "nDCG@10",
    "AP@10": "mAP@10",
    "RR": "MRR",
}
INSTALL = "pip install -c constraints.txt -e '.[evaluate]'"
TERM = re.compile(r"(?P<cjk>[぀-ヿ㐀-鿿豈-﫿ｦ-ﾟ]+)|[^\W_]+")
NGRAMS = (1, 3)

PARTS, WITHOUT = ("dense", "sparse", "colbert"), "hybrid without "
DEFAULT_WEIGHTS = Weights()

Run = list[list[str]]
PerQuery = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a queries file."""

    text: str
    relevant: tuple[str, ...]
    kind: str


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What to evaluate: an index, by which modes; against a second one, and the baselines.

    `ablation`: also the hybrid score without each of its three parts, against the whole.
    """

    index: str
    queries: str
    modes: tuple[Mode, ...] = tuple(Mode)
    against: str | None = None
    model: str | None = None
    device: Device = Device.AUTO
    weights: Weights = DEFAULT_WEIGHTS
    baselines: bool = True
    ablation: bool = False
    nsfw: bool = True
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.ablation and Mode.HYBRID not in self.modes:
            raise UsageError("--ablation takes parts out of the hybrid score: pass --mode hybrid or --mode all")
        if self.ablation and not all(self.without(part).total for part in PARTS):
            raise UsageError("--ablation needs two --weights that are not 0")

    def without(self, part: str) -> Weights:
        """The weights with one of `PARTS` at nothing."""
        return replace(self.weights, **{part: 0.0})


@dataclass(slots=True)
class System:
    """What one way of searching reached: every measure over all queries and by kind, each with its 95% interval.

    `better`, `worse`: the measures in which it differs from its counterpart beyond chance (paired bootstrap).
    """

    name: str
    all: dict[str, list[float]] = field(default_factory=dict)
    kinds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    counterpart: str = ""
    better: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)


@dataclass(slots=True)
class EvaluationReport:
    """The table; every measure is [mean, low, high]."""

    index: str
    model: str
    model_id: str
    records: int
    queries: dict[str, int]
    unknown: int
    unknown_tags: int = 0
    systems: list[System] = field(default_factory=list)
    picture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "systems"}
        return plain | {"systems": [{n: getattr(s, n) for n in s.__slots__} for s in self.systems]}

    def to_text(self) -> str:
        total = sum(self.queries.values())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.queries.items())
        lines = [
            f"{self.index}: {self.records:,} records, {self.model} (id {self.model_id[:12]}); {total:,} queries ({kinds})"
        ]
        if self.unknown:
            lines.append(f"  {self.unknown:,} queries name no tag of this index: they count as not found")
        if self.unknown_tags:
            lines.append(
                f"  {self.unknown_tags:,} of the tags that queries name are none of this index: recall stays below 1"
            )
        width = max(len(system.name) for system in self.systems) + 2
        for kind in ("all", *self.queries):
            lines.append(f"{kind:<{width}}" + "".join(f"{TITLES[m]:>22}" for m in MEASURES))
            for system in self.systems:
                values = system.all if kind == "all" else system.kinds[kind]
                cells = [f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for v in (values[m] for m in MEASURES)]
                marks = [_mark(system, m) if kind == "all" else "" for m in MEASURES]
                lines.append(
                    f"{system.name:<{width}}" + "".join(f"{c + k:>22}" for c, k in zip(cells, marks, strict=True))
                )
        if any(system.counterpart for system in self.systems):
            lines.append(
                "  + better, - worse than its counterpart (the same mode of the other index; the whole hybrid), beyond chance "
                "(paired bootstrap, 95%)"
            )
        return "\n".join(lines)


def _mark(system: System, measure: str) -> str:
    return "+" if measure in system.better else "-" if measure in system.worse else ""


def read_queries(path: str) -> list[Query]:
    """The queries of a file; raise `InputError` that names the line for one that cannot be used."""
    queries = []
    for number, line in text_lines(Path(path)):
        try:
            item = json.loads(line)
            text, relevant, kind = item["query"], item["relevant"], item.get("kind", "all queries")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(
                f'{path}:{number}: needs {{"query": "...", "relevant": ["tag", ...], "kind": "..."}}'
            ) from None
        strings = isinstance(relevant, list) and all(isinstance(tag, str) for tag in relevant)
        if not (isinstance(text, str) and strings and relevant and isinstance(kind, str)):
            raise InputError(f"{path}:{number}: query must be a text, relevant a list of at least one tag")
        if kind == "all" or any(is_blank(word) or not _plain(word) for word in (text, kind, *relevant)):
            raise InputError(
                f"{path}:{number}: query, kind and tags must be texts that can be seen, in valid Unicode; no kind is called all"
            )
        queries.append(Query(text, tuple(relevant), kind))
    if not queries:
        raise InputError(f"{path}: holds no query")
    return queries


def _plain(text: str) -> bool:
    """Whether a text can be handed to C: no lone surrogates, which end the process there, and no NUL, which ends the text."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def evaluate(config: EvaluateConfig) -> EvaluationReport:
    """Evaluate an index, the baselines over its texts, and a second index beside it.

    Raises `InputError`, `StorageError`, `ModelError` or `UsageError`.
    """
    _ir_measures()
    queries = read_queries(config.queries)
    generation = IndexRoot(config.index).current()
    reader = GenerationReader(generation)
    allowed = reader.allowed(Filter(nsfw=config.nsfw))
    tags = [tag if keep else "" for tag, keep in zip(reader.tags(), allowed.tolist(), strict=True)]
    known = set(tags)
    manifest = generation.manifest
    report = EvaluationReport(
        config.index,
        manifest.model["name"],
        manifest.model["id"],
        len(tags),
        {kind: sum(q.kind == kind for q in queries) for kind in sorted({q.kind for q in queries})},
        sum(not known.intersection(query.relevant) for query in queries),
        len({tag for query in queries for tag in query.relevant} - known),
    )
    encoded = _encoded(QueryEncoder(generation, config.model, config.device, config.instruction), queries)
    runs = _runs(config, reader, encoded, PARTS if config.ablation else ())
    scored = {name: per_query(queries, run) for name, run in runs.items()}
    counterparts = {name: Mode.HYBRID.value for name in scored if name.startswith(WITHOUT)}
    if config.against is not None:
        other_generation = IndexRoot(config.against).current()
        other_reader = GenerationReader(other_generation)
        encoded = _encoded(QueryEncoder(other_generation, None, config.device), queries)
        for name, run in _runs(config, other_reader, encoded).items():
            other = f"{name} of {config.against}"
            scored[other], counterparts[name] = per_query(queries, run), other
    if config.baselines:
        texts = reader.texts()
        scored["bm25"] = per_query(queries, bm25(texts, tags, queries))
        scored["char tf-idf"] = per_query(queries, char_tfidf(texts, tags, queries))
    for name, values in scored.items():
        report.systems.append(_system(name, values, queries, counterparts.get(name), scored))
    return report


def _encoded(encode: QueryEncoder, queries: list[Query]) -> list[EncodedQuery]:
    encoded: list[EncodedQuery] = []
    for start in range(0, len(queries), ENCODED_AT_ONCE):
        encoded += encode([query.text for query in queries[start : start + ENCODED_AT_ONCE]])
    return encoded


def _runs(
    config: EvaluateConfig, reader: GenerationReader, encoded: list[EncodedQuery], left_out: Sequence[str] = ()
) -> dict[str, Run]:
    """The answers of each mode; hybrid also without each part that is left out."""
    wanted = Filter(nsfw=config.nsfw)
    ranked: dict[str, list[Rows]] = {}
    for mode in config.modes:
        if mode is Mode.HYBRID:
            weightings = [config.weights, *(config.without(part) for part in left_out)]
            names = [mode.value, *(WITHOUT + part for part in left_out)]
            ranked |= zip(names, rank_hybrids(reader, encoded, DEPTH, weightings, wanted), strict=True)
        else:
            ranked[mode.value] = rank_many(reader, encoded, mode, DEPTH, config.weights, wanted)
    tags = reader.tags()
    return {name: [[tags[row] for row in rows.tolist()] for rows in found] for name, found in ranked.items()}


def per_query(queries: Sequence[Query], run: Run) -> PerQuery:
    """Every measure of every query, [queries]; a tag that several records share counts once, at its best place."""
    ir_measures = _ir_measures()
    Qrel, ScoredDoc = ir_measures.Qrel, ir_measures.ScoredDoc

    judged = [Qrel(str(n), tag, 1) for n, query in enumerate(queries) for tag in dict.fromkeys(query.relevant)]
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


def _system(
    name: str, values: PerQuery, queries: list[Query], other: str | None, scored: dict[str, PerQuery]
) -> System:
    kinds = np.array([query.kind for query in queries])
    system = System(name, counterpart=other or "")
    system.all = {measure: interval(values[measure]) for measure in MEASURES}
    for kind in sorted(set(kinds.tolist())):
        system.kinds[kind] = {measure: interval(values[measure][kinds == kind]) for measure in MEASURES}
    for measure in MEASURES if other else ():
        _, low, high = interval(values[measure] - scored[other or ""][measure])
        if low > 0:
            system.better.append(measure)
        if high < 0:
            system.worse.append(measure)
    return system


def interval(values: np.ndarray[Any, Any]) -> list[float]:
    """[mean, low, high]: the mean of per-query values and its 95% bootstrap interval; the same values, the same interval."""
    chance = np.random.default_rng(0)
    means = np.array([values[chance.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5])
    return [round(float(values.mean()), 4), round(float(low), 4), round(float(high), 4)]


def bm25(texts: list[str], tags: list[str], queries: Sequence[Query]) -> Run:
    """BM25 over the texts: words as bm25s cuts them, CJK by character and pair of characters."""
    try:
        import bm25s
    except ImportError:
        raise _missing("bm25s") from None
    vocabulary: dict[str, int] = {}
    corpus = [[vocabulary.setdefault(term, len(vocabulary)) for term in _terms(text)] for text in texts]
    asked = [[vocabulary[term] for term in _terms(query.text) if term in vocabulary] for query in queries]
    if not vocabulary:  # a dump of kaomoji alone
        return [[] for _ in queries]
    retriever = bm25s.BM25()
    retriever.index((corpus, vocabulary), show_progress=False)
    found: Run = []
    for tokens in asked:
        if not tokens:
            found.append([])
            continue
        scores = retriever.get_scores_from_ids(tokens)
        found.append([tags[row] for row in top_positive(np.asarray(scores), DEPTH).tolist()])
    return found


def _terms(text: str) -> list[str]:
    """Words of letters and digits, lower case; runs of CJK as characters and pairs of them."""
    terms: list[str] = []
    for found in TERM.finditer(text.lower()):
        word = found[0]
        terms += [*word, *(word[at : at + 2] for at in range(len(word) - 1))] if found["cjk"] else [word]
    return terms


def char_tfidf(texts: list[str], tags: list[str], queries: Sequence[Query]) -> Run:
    """TF-IDF of character n-grams, cosine."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise _missing("scikit-learn") from None
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, min_df=1, dtype=np.float32)
    known = vectorizer.fit_transform(text.replace("_", " ") for text in texts).T.tocsr()
    asked = vectorizer.transform(query.text.replace("_", " ") for query in queries)
    found: Run = []
    for row in range(asked.shape[0]):
        scores = np.asarray((asked[row] @ known).todense()).ravel()
        found.append([tags[place] for place in top_positive(scores, DEPTH).tolist()])
    return found


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError:
        raise UsageError(f"evaluate needs ir-measures: {INSTALL}") from None
    return ir_measures


def _missing(package: str) -> UsageError:
    return UsageError(f"the baselines need {package}: {INSTALL}, or --no-baselines")


def _plain_label(text: str) -> str:
    """A text that matplotlib shows as it is: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def draw(report: EvaluationReport, path: Path) -> None:
    """Recall@10 and mAP@10 of every system, over all queries and by kind, with their intervals (SVG or PNG by suffix)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts = {"all": sum(report.queries.values())} | report.queries
    kinds = list(counts)
    with rc_context({"svg.hashsalt": report.model_id, "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        for axes, measure in zip(figure.subplots(2, 1), ("R@10", "AP@10"), strict=True):
            width = 0.8 / len(report.systems)
            for place, system in enumerate(report.systems):
                values = np.array([(system.all if kind == "all" else system.kinds[kind])[measure] for kind in kinds])
                at = np.arange(len(kinds)) + (place - (len(report.systems) - 1) / 2) * width
                errors = np.abs(values[:, 1:].T - values[:, 0])
                axes.bar(at, values[:, 0], width, yerr=errors, capsize=2, label=_plain_label(system.name))
            axes.set_xticks(np.arange(len(kinds)), [_plain_label(f"{k} ({count:,})") for k, count in counts.items()])
            axes.set(ylabel=TITLES[measure], ylim=(0, 1))
            axes.grid(axis="y", alpha=0.3)
        figure.axes[0].legend(fontsize=8, ncols=3)
        title = f"{report.model} over {report.records:,} records; bars: mean, whiskers: 95% bootstrap interval"
        figure.suptitle(_plain_label(title))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    report.picture = str(path)
