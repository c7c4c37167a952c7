"""More than one tag in a query: a pasted prompt, or a sentence that describes a picture.

Both are split into parts. A part that is the name of a tag is covered, and its tag stands first; of
a sentence the longest run of words that is a name is one. What no name covers is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from danbooru_index.index.folding import KANA_OR_HAN, fold, is_cjk
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.index.words import Word, words_of
from danbooru_index.search.lexical import LexicalRetriever, Match
from danbooru_index.search.prompt import split_prompt

CLAUSE_ENDS = re.compile(r"[。．；;！!？?]+")
LONGEST_SPLIT = 4000  # characters: longer than any prompt
LONGEST_NAME = 8  # words
SHORTEST_SENTENCE = 8  # kana and Han characters
FEWEST_WORDS = 4  # of a sentence in Latin letters
NAMED_IN_A_SENTENCE = 3  # parts that are names, at least: black pantyhose are one tag, not two
LONG_SENTENCE, MANY_WORDS = 10, 6  # from which two are enough
MOST_NAMED = 20
SHORTEST_KANA = 4  # characters of a word that is looked up by its reading


@dataclass(frozen=True, slots=True)
class QueryPart:
    """One part of a query; `covered`: it is the name of a tag."""

    text: str
    covered: bool


def parts_of(files: SearchFiles, query: str, mask: npt.NDArray[np.bool_]) -> list[QueryPart]:
    """The parts of a prompt or a description, in order, each once; none where a query asks for one
    tag.
    """
    whole = LexicalRetriever(files).named(query, 1, mask)
    if whole or len(query) > LONGEST_SPLIT or not _may_hold_several(query):
        return []

    @cache
    def named(text: str) -> bool:
        return bool(tags_of_part(files, text, 1, mask))

    listed = split_prompt(query)
    parts: dict[str, QueryPart] = {}
    for piece in listed:
        # `:)` is a tag: brackets are taken off only where the whole is none.
        text = piece.written if named(piece.written) else piece.name
        short = len(listed) > 1 and not _is_sentence(text)  # `blue eyse` is one part of a list
        plain = text if named(text) else text.replace("的", "")  # 白色的头发
        known = named(plain)
        alone = [QueryPart(plain if known else text, known)]
        found = alone if short or known else _in_piece(text, named)
        for part in found:
            parts.setdefault(fold(part.text), part)
    covered = sum(part.covered for part in parts.values())
    if len(listed) > 1:
        return list(parts.values()) if covered and len(parts) > 1 else []
    long = len(KANA_OR_HAN.findall(query)) >= LONG_SENTENCE or len(query.split()) >= MANY_WORDS
    return list(parts.values()) if covered >= (2 if long else NAMED_IN_A_SENTENCE) else []


def tags_of_part(files: SearchFiles, text: str, k: int, mask: npt.NDArray[np.bool_]) -> list[Match]:
    """Up to `k` of the allowed rows that a part names: a qualified tag (`girl_(mokufuu)`) only by
    its whole name. A word in kana may be the tag's reading: セーラー服 is serafuku.
    """
    names = LexicalRetriever(files)
    matches = names.named(text, MOST_NAMED, mask)
    if not matches and len(text) >= SHORTEST_KANA:
        matches = names.read_alike(text, k, mask)
    tags = [record["tag"] for record in files.records(match.row for match in matches)]
    key = fold(text)
    return [
        match
        for match, tag in zip(matches, tags, strict=True)
        if not tag.endswith(")") or fold(tag) == key
    ][:k]


def find_names(files: SearchFiles, query: str, k: int, mask: npt.NDArray[np.bool_]) -> list[Match]:
    """Up to `k` of the allowed rows that a query or one of its parts names, or nearly names: those
    that are sure first.
    """
    first: dict[int, Match] = {}
    for part in parts_of(files, query, mask):
        for match in tags_of_part(files, part.text, 1, mask) if part.covered else ():
            first.setdefault(match.row, replace(match, part=part.text))
    found = LexicalRetriever(files).find(query, k, mask)
    return [*first.values(), *(match for match in found if match.row not in first)][:k]


def _may_hold_several(query: str) -> bool:
    """Whether a query is long enough for a sentence, or a list."""
    return _is_sentence(query) or len(split_prompt(query)) > 1


def _is_sentence(text: str) -> bool:
    characters, words = len(KANA_OR_HAN.findall(text)), len(text.split())
    return characters >= SHORTEST_SENTENCE or words >= FEWEST_WORDS


def _in_piece(text: str, named: Callable[[str], bool]) -> Iterator[QueryPart]:
    if named(text):
        yield QueryPart(text, True)
        return
    for clause in CLAUSE_ENDS.split(text):
        yield from _in_clause(clause.strip(), named)


def _in_clause(clause: str, named: Callable[[str], bool]) -> Iterator[QueryPart]:
    """The longest names from the left on, and what stands between them."""
    words = words_of(clause)
    between: list[Word] = []
    space, at = "" if is_cjk(clause) else " ", 0
    while at < len(words):
        size, name = _name_at(words[at : at + LONGEST_NAME], space, named)
        if size or words[at].joins:
            yield from _uncovered(between, space)
            between = []
            if size:
                yield QueryPart(name, True)
        else:
            between.append(words[at])
        at += max(1, size)
    yield from _uncovered(between, space)


def _name_at(words: list[Word], space: str, named: Callable[[str], bool]) -> tuple[int, str]:
    """How many of these words, from the first on, are a name, and the name: as written, or without
    words that only join (白色的头发).
    """
    for size in range(len(words), 0, -1):
        run = words[:size]
        if run[-1].joins or (size == 1 and run[0].joins):
            continue
        written = space.join(word.text for word in run)
        plain = space.join(word.text for word in run if not word.joins)
        for form in dict.fromkeys((written, plain) if not run[0].joins else (written,)):
            if named(form):
                return size, form
    return 0, ""


def _uncovered(words: list[Word], space: str) -> Iterator[QueryPart]:
    text = space.join(word.text for word in words)
    if text:
        yield QueryPart(text, False)
