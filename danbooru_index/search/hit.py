"""One answer of a search, as other programs get it and as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from danbooru_index.choices import MatchReason, Mode
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.search.lexical import LexicalRetriever
from danbooru_index.search.query import shortened
from danbooru_index.search.ranking import Ranking

COLUMN_TYPES: dict[str, pa.DataType] = {
    "rank": pa.int64(),
    **dict.fromkeys(("score", "dense", "sparse", "colbert"), pa.float64()),
    **dict.fromkeys(("id", "tag", "category", "text", "source"), pa.string()),
    "post_count": pa.int64(),
    "aliases": pa.list_(pa.string()),
    **dict.fromkeys(("nsfw", "deprecated"), pa.bool_()),
    **dict.fromkeys(("reason", "matched", "part"), pa.string()),
}
LEAST_TOLD = 0.5  # similarity of a name from which it is a reason


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a hit stands where it stands.

    `found`: its place among the candidates of each retriever that found it, 1 the first. `added`:
    what likeness of names and popularity add to its score in a hybrid search. `total`: the score
    with what is added, which orders the hits that no name puts first. `tokens`: what each token
    that it shares with the query gives to `sparse`, most first.
    """

    found: dict[str, int]
    added: dict[str, float]
    total: float
    tokens: dict[str, float]


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: the record, its score in the mode asked for, and the score of each mode.

    `score` of a hybrid search: the weighted mean of `dense`, `sparse` and `colbert`; names and
    posts decide the order beside it. Of a lexical one: how like the query the name is; the other
    three are None there, since no model is asked. `reason`: why the tag answers, the value of a
    `MatchReason`; `matched`: the name that says so, empty where it is the meaning. `part`: the part
    of the query that it answers, empty where it is the whole. `explanation`: only where asked for.
    """

    rank: int
    score: float
    dense: float | None
    sparse: float | None
    colbert: float | None
    id: str
    tag: str
    category: str
    text: str
    source: str
    post_count: int | None
    aliases: list[str]
    nsfw: bool
    deprecated: bool
    reason: str = MatchReason.MEANING.value
    matched: str = ""
    part: str = ""
    explanation: Explanation | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: without an explanation where none was asked for."""
        told = asdict(self)
        if self.explanation is None:
            del told["explanation"]
        return told


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """A part of a query that asks for more than one tag, and the tags that answer it, best first.
    `covered`: the part is the name of the first; else they are found by meaning, or none are.
    """

    part: str
    covered: bool
    tags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tags": list(self.tags)}


class Hits(list[Hit]):
    """The answers to a query, best first; as a table, too. `parts`: the parts of a prompt or a
    description, in order; empty where the query asks for one tag.
    """

    def __init__(self, hits: Iterable[Hit] = (), parts: Sequence[PartAnswer] = ()) -> None:
        super().__init__(hits)
        self.parts = tuple(parts)

    def to_arrow(self) -> pa.Table:
        """A column for each field of `Hit` but the explanation, a row for each answer."""
        columns = {name: [getattr(hit, name) for hit in self] for name in COLUMN_TYPES}
        return pa.table(
            {name: pa.array(values, COLUMN_TYPES[name]) for name, values in columns.items()}
        )

    def to_pandas(self) -> Any:
        """`to_arrow` as a `pandas.DataFrame`."""
        return self.to_arrow().to_pandas()


def make_hits(
    files: SearchFiles, query: str, ranking: Ranking, explanations: Sequence[Explanation] = ()
) -> Hits:
    """The rows of a ranking with all that is known of them."""
    names, hits = LexicalRetriever(files), Hits()
    for place, record in enumerate(files.records(ranking.rows.tolist())):
        known: dict[str, Any] = {
            mode.value: None if ranking.parts is None else float(ranking.parts[mode][place])
            for mode in (Mode.DENSE, Mode.SPARSE, Mode.COLBERT)
        }
        match = ranking.matches[place]
        if match is not None and (match.sure or match.similarity >= LEAST_TOLD):
            known |= {"reason": match.reason.value, "part": match.part}
            if match.reason is not MatchReason.MEANING:
                known["matched"] = names.name(match.part or query, match, record)
        if explanations:
            known["explanation"] = explanations[place]
        hits.append(Hit(rank=place + 1, score=float(ranking.score[place]), **known, **record))
    return hits


def format_hits(query: str, hits: Hits) -> str:
    """A small table for a terminal; under it the parts of a query that has several."""
    by_model = any(hit.dense is not None for hit in hits)
    parts = f"{'dense':>6} {'sparse':>6} {'colbert':>7}  " if by_model else ""
    lines = [shortened(query), f"  {'':>2}  {'score':>6} {parts or ' '}{'why':<15} text"]
    for hit in hits:
        scores = " ".join(
            f"{value:>{width}.3f}"
            for value, width in ((hit.dense, 6), (hit.sparse, 6), (hit.colbert, 7))
            if value is not None
        )
        name = hit.matched if hit.matched != hit.tag else ""
        named = f" ({shortened(name or hit.part, 30)})" if name or hit.part else ""
        lines.append(
            f"  {hit.rank:>2}  {hit.score:>6.3f} {scores}{'  ' if scores else ' '}"
            f"{hit.reason:<15} {shortened(hit.text, 70)}{named}"
        )
        lines += _explained(hit.explanation)
    if len(lines) == 2:
        lines.append("  nothing found")
    return "\n".join(lines + _by_part(hits.parts))


def _explained(explanation: Explanation | None) -> list[str]:
    """The explanation of a hit, in a line."""
    if explanation is None:
        return []
    found = ", ".join(f"{name} {place}" for name, place in explanation.found.items())
    added = "".join(f" + {name} {value:.3f}" for name, value in explanation.added.items())
    tokens = ", ".join(f"{token} {value:.3f}" for token, value in explanation.tokens.items())
    told = [f"found by {found or 'its parts alone'}", f"score{added} = {explanation.total:.3f}"]
    return ["      " + "; ".join(told + ([f"tokens {tokens}"] if tokens else []))]


def _by_part(parts: Sequence[PartAnswer]) -> list[str]:
    """A line for each part of a query."""
    if not parts:
        return []
    lines = ["  by part"]
    for part in parts:
        meant = ", ".join(part.tags) if part.tags else "no tag"
        lines.append(f"    {shortened(part.part, 40)}  {'->' if part.covered else '?>'}  {meant}")
    return lines
