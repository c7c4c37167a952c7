"""One answer of a search, as other programs get it and as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
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
    **dict.fromkeys(("reason", "matched"), pa.string()),
}
LEAST_TOLD = 0.5  # similarity of a name from which it is a reason


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: the record, its score in the mode asked for, and the score of each mode.

    `score` of a hybrid search: the weighted mean of `dense`, `sparse` and `colbert`; names and
    posts decide the order beside it. Of a lexical one: how like the query the name is; the other
    three are None there, since no model is asked. `reason`: why the tag answers, the value of a
    `MatchReason`; `matched`: the name that says so, empty where it is the meaning.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Hits(list[Hit]):
    """The answers to a query, best first; as a table, too."""

    def to_arrow(self) -> pa.Table:
        """A column for each field of `Hit`, a row for each answer."""
        columns = {f.name: [getattr(hit, f.name) for hit in self] for f in fields(Hit)}
        return pa.table(
            {name: pa.array(values, COLUMN_TYPES[name]) for name, values in columns.items()}
        )

    def to_pandas(self) -> Any:
        """`to_arrow` as a `pandas.DataFrame`."""
        return self.to_arrow().to_pandas()


def make_hits(files: SearchFiles, query: str, ranking: Ranking) -> Hits:
    """The rows of a ranking with all that is known of them."""
    names, hits = LexicalRetriever(files), Hits()
    for place, record in enumerate(files.records(ranking.rows.tolist())):
        parts: dict[str, Any] = {
            mode.value: None if ranking.parts is None else float(ranking.parts[mode][place])
            for mode in (Mode.DENSE, Mode.SPARSE, Mode.COLBERT)
        }
        match = ranking.matches[place]
        if match is not None and (match.sure or match.similarity >= LEAST_TOLD):
            parts |= {"reason": match.reason.value, "matched": names.name(query, match, record)}
        hits.append(Hit(rank=place + 1, score=float(ranking.score[place]), **parts, **record))
    return hits


def format_hits(query: str, hits: Iterable[Hit]) -> str:
    """A small table for a terminal."""
    hits = list(hits)
    by_model = any(hit.dense is not None for hit in hits)
    parts = f"{'dense':>6} {'sparse':>6} {'colbert':>7}  " if by_model else ""
    lines = [shortened(query), f"  {'':>2}  {'score':>6} {parts or ' '}{'why':<15} text"]
    for hit in hits:
        scores = " ".join(
            f"{value:>{width}.3f}"
            for value, width in ((hit.dense, 6), (hit.sparse, 6), (hit.colbert, 7))
            if value is not None
        )
        named = f" ({shortened(hit.matched, 30)})" if hit.matched not in ("", hit.tag) else ""
        lines.append(
            f"  {hit.rank:>2}  {hit.score:>6.3f} {scores}{'  ' if scores else ' '}"
            f"{hit.reason:<15} {shortened(hit.text, 70)}{named}"
        )
    if len(lines) == 2:
        lines.append("  nothing found")
    return "\n".join(lines)
