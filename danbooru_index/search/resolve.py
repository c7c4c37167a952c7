"""A list of names, each told what it is: a tag, an alias of one, nearly one, or unknown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from danbooru_index.choices import Choice, MatchReason
from danbooru_index.index.folding import fold
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.search.lexical import LexicalRetriever, Match
from danbooru_index.search.prompt import split_prompt

CANDIDATES_SHOWN = 5
LEAST_LIKE = 0.6  # similarity of a name that sounds alike


class Standing(Choice):
    """What a name is."""

    CONFIRMED = "confirmed"
    ALIAS = "alias"
    CANDIDATES = "candidates"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Resolved:
    """One name of a list: `tag`, where it is one or an alias of one; else the tags that it may
    mean, the likeliest first.
    """

    name: str
    standing: str
    tag: str | None
    candidates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"candidates": list(self.candidates)}


def resolve_names(files: SearchFiles, text: str, mask: npt.NDArray[np.bool_]) -> list[Resolved]:
    """The names of a prompt or a list, in their order, each once."""
    retriever, found = LexicalRetriever(files), []
    for part in split_prompt(text):
        # `:)` is a tag: brackets are taken off only where the whole is none.
        whole = files.names.exactly(fold(part.written))
        name = part.written if len(whole.rows) else part.name
        found.append(_told_of(files, name, retriever.find(name, CANDIDATES_SHOWN, mask)))
    return found


def _told_of(files: SearchFiles, name: str, matches: list[Match]) -> Resolved:
    likely = [m for m in matches if m.sure or m.similarity >= LEAST_LIKE]
    tags = [record["tag"] for record in files.records(match.row for match in likely)]
    if not likely:
        return Resolved(name, Standing.UNKNOWN.value, None)
    first = likely[0]
    if first.sure and first.reason is MatchReason.EXACT:
        return Resolved(name, Standing.CONFIRMED.value, tags[0])
    if first.sure and first.reason is not MatchReason.TRANSLITERATION:
        return Resolved(name, Standing.ALIAS.value, tags[0])
    return Resolved(name, Standing.CANDIDATES.value, None, tuple(tags))


def format_resolved(resolved: list[Resolved]) -> str:
    """A line for each name."""
    lines = []
    for one in resolved:
        meant = one.tag or ", ".join(one.candidates)
        lines.append(f"  {one.standing:<10}  {one.name}" + (f"  ->  {meant}" if meant else ""))
    return "\n".join(lines) or "  no name in it"
