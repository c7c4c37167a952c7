"""The table of names of a generation: every spelling of every name, sorted, and whose it is.

A name is a tag, one of its aliases or other names, or the explanation in its text. A key is a name
folded (`folding`), without its parentheses, in simplified Chinese, or in Latin letters.

    name_keys, name_starts     the keys, one after another, in byte order; where each begins
    name_entries               [keys + 1] where each key's entries begin
    name_rows                  [entries] the row that has the name
    name_kinds                 [entries] what sort of name it is: a `NameKind`
    name_places                [entries] which of the record's names: see `names_of`
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from danbooru_index.embeddings import Array
from danbooru_index.index.arrays import Strings
from danbooru_index.index.folding import HAN, fold, has_kana, is_cjk, without_parentheses
from danbooru_index.index.transliteration import pinyin, romaji, simplified, squeezed
from danbooru_index.records import parse_text

LONGEST_READ = 100  # characters: of a longer name no reading is kept
EXPLANATION_ENDS = "。.！!？?；;\n"
EXPLANATION_PARTS = "、，,/|"
# Added to a kind, where names are ordered: a part of a name stands after all whole ones, a name of
# a deprecated tag after all others.
IN_PART, DEPRECATED = 8, 16


class NameKind(IntEnum):
    """What sort of name a key is, the surest first."""

    TAG = 0
    ALIAS = 1
    ABBREVIATION = 2
    OTHER_NAME = 3
    EXPLANATION = 4
    ROMAJI = 5
    PINYIN = 6
    INITIALS = 7


@dataclass(frozen=True, slots=True)
class Named:
    """What is known of the names of one record."""

    tag: str
    aliases: tuple[str, ...]
    text: str
    post_count: int
    deprecated: bool


def names_of(tag: str, aliases: Iterable[str], text: str) -> list[tuple[str, NameKind]]:
    """The names of a record and what each is: the tag, its aliases, the parts of its explanation.

    An alias that is not Latin is another name; one that begins with `/` is an abbreviation.
    """
    names = [(tag, NameKind.TAG)] if tag else []
    for alias in aliases:
        other = is_cjk(alias) or not alias.isascii()
        short = alias.startswith("/") and len(alias) > 1
        kind = NameKind.ABBREVIATION if short else NameKind.ALIAS
        names.append((alias, NameKind.OTHER_NAME if other else kind))
    explanation = parse_text(text).explanation
    names += [(part, NameKind.EXPLANATION) for part in explanation_parts(explanation)]
    return names


def explanation_parts(explanation: str) -> list[str]:
    """The names that an explanation begins with: `长发，飘逸的长发。头发过肩` holds two."""
    for end in EXPLANATION_ENDS:
        explanation = explanation.partition(end)[0]
    for sign in EXPLANATION_PARTS:
        explanation = explanation.replace(sign, "、")
    return [part.strip() for part in explanation.split("、") if part.strip()]


def keys_of(name: str, kind: NameKind) -> Iterator[tuple[str, int]]:
    """Every key by which a name is found, and the rank of its kind; may repeat one."""
    key = fold(name)
    sentence = len(key) > LONGEST_READ
    if not key or (sentence and kind is NameKind.EXPLANATION):
        return
    whole = simplified(key)
    yield from ((key, kind), (whole, kind))
    for form in {without_parentheses(key), without_parentheses(whole)} - {key, whole}:
        yield form, kind + IN_PART
    if sentence or not is_cjk(key):
        return
    short = without_parentheses(whole)
    if kind is not NameKind.EXPLANATION:  # which is Chinese
        reading = squeezed(romaji(without_parentheses(name)))
        yield from [(reading, int(NameKind.ROMAJI))] if reading else []
    if HAN.search(short) and not has_kana(short):
        syllables = pinyin(short)
        yield "".join(syllables), NameKind.PINYIN
        if len(syllables) > 1:
            yield "".join(syllable[0] for syllable in syllables), NameKind.INITIALS


def name_arrays(records: Iterable[Named]) -> dict[str, Array]:
    """The table of the names of records, in row order."""
    return sorted_names(name_entries(records))


def name_entries(records: Iterable[Named]) -> pa.Table:
    """Every name of records, unsorted: its `key`; its row, counted from the first record; its kind
    in `ranks`; its number among the record's names in `places`; minus the posts in `posts`.
    """
    keys: list[bytes] = []
    columns: dict[str, list[int]] = {"rows": [], "ranks": [], "places": [], "posts": []}
    for row, record in enumerate(records):
        seen: set[tuple[str, int]] = set()
        for place, (name, named) in enumerate(names_of(record.tag, record.aliases, record.text)):
            for key, rank in keys_of(name, named):
                if (key, rank) in seen:
                    continue
                seen.add((key, rank))
                keys.append(key.encode())
                columns["rows"].append(row)
                columns["ranks"].append(rank + DEPRECATED * record.deprecated)
                columns["places"].append(min(place, 0xFFFF))
                columns["posts"].append(-record.post_count)
    return pa.table(
        {"key": pa.array(keys, pa.large_binary())}
        | {name: pa.array(values, pa.int64()) for name, values in columns.items()}
    )


def sorted_names(table: pa.Table) -> dict[str, Array]:
    """Entries by key; within one by what the name is, then by posts."""
    import pyarrow.compute as pc  # 50 ms: not for a search

    order = [(name, "ascending") for name in ("key", "ranks", "posts", "rows")]
    table = table.take(pc.sort_indices(table, sort_keys=order)).combine_chunks()
    runs = pc.run_end_encode(table["key"].combine_chunks(), run_end_type=pa.int64())
    values = runs.values
    blob = values.buffers()[2]
    starts = np.frombuffer(values.buffers()[1], np.int64)[: len(values) + 1]
    return {
        "name_keys": np.frombuffer(blob or b"", np.uint8)[: starts[-1]],
        "name_starts": starts,
        "name_entries": np.concatenate(([0], runs.run_ends.to_numpy())),
        "name_rows": table["rows"].to_numpy().astype(np.int32),
        "name_kinds": (table["ranks"].to_numpy() % IN_PART).astype(np.uint8),
        "name_places": table["places"].to_numpy().astype(np.uint16),
    }


@dataclass(frozen=True, slots=True)
class Entries:
    """Names that were found: the row of each, what it is, which of the record's names."""

    rows: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    places: npt.NDArray[np.uint16]


class NameTable:
    """Looks names up; the arrays stay where they are."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.keys = Strings(arrays["name_keys"], arrays["name_starts"])
        self._firsts = arrays["name_entries"]
        self._columns = tuple(arrays[f"name_{name}"] for name in ("rows", "kinds", "places"))

    def exactly(self, key: str) -> Entries:
        """The entries of one key: the surest kind first, then by posts; deprecated tags last."""
        wanted = key.encode()
        at = bisect.bisect_left(self.keys, wanted)
        found = at < len(self.keys) and self.keys[at] == wanted
        return self.entries(at, at + found)

    def beginning(self, key: str) -> Entries:
        """The entries of all keys that begin so, in key order."""
        wanted = key.encode()
        start = bisect.bisect_left(self.keys, wanted)
        # No UTF-8 text has the byte 0xFF.
        return self.entries(start, bisect.bisect_left(self.keys, wanted + b"\xff", lo=start))

    def matching(self, pattern: re.Pattern[bytes]) -> Iterator[Entries]:
        """The entries of each key that a pattern of whole lines finds, in key order."""
        lines, starts = self._lines
        for found in pattern.finditer(lines):
            number = int(np.searchsorted(starts, found.start()))
            yield self.entries(number, number + 1)

    @cached_property
    def _lines(self) -> tuple[bytes, npt.NDArray[np.int64]]:
        """All keys, a line each, and where each line begins: made once, for wildcards alone."""
        lines = b"".join(self.keys[number] + b"\n" for number in range(len(self.keys)))
        lengths = np.diff(self.keys.starts) + 1
        return lines, np.concatenate(([0], np.cumsum(lengths)))

    def entries(self, start: int, stop: int) -> Entries:
        """The entries of the keys of these numbers."""
        span = slice(int(self._firsts[start]), int(self._firsts[stop]))
        found: list[Any] = [np.asarray(column[span]) for column in self._columns]
        return Entries(*found)
