"""Lexical retrieval: tags by their names, without a model, each with the reason.

Sure: the query is a tag, an alias, another name. Else likely: it begins one, is one but for a few
letters, or sounds like one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from danbooru_index.choices import MatchReason
from danbooru_index.index.folding import fold, has_kana, is_cjk, unescaped, without_parentheses
from danbooru_index.index.names import Entries, NameKind, names_of
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.index.transliteration import latin, pinyin, romaji, simplified, squeezed
from danbooru_index.records import parse_text

SURE = {
    NameKind.TAG: MatchReason.EXACT,
    NameKind.ALIAS: MatchReason.ALIAS,
    NameKind.ABBREVIATION: MatchReason.ABBREVIATION,
    NameKind.OTHER_NAME: MatchReason.OTHER_NAME,
    NameKind.EXPLANATION: MatchReason.OTHER_NAME,
}
LONGEST_COMPARED = 64  # characters: a longer query is a sentence
NEAREST = 200  # names that sound most alike
LEAST_SIMILARITY = 0.3
SHORTEST_MISSPELT = 4  # letters
SHORTEST_READING, SHORTEST_INITIALS = 5, 3
MOST_READ = 3  # rows of one reading: it means many words
VOWELS = re.compile("[aeiou]")
WILDCARD_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Match:
    """A row that a query names: why, how nearly (0 to 1), and which of the record's names it is,
    -1 where that is not known. `sure`: it stands before all that is found by meaning. `part`: what
    of the query it is about, empty for the whole.
    """

    row: int
    reason: MatchReason
    similarity: float
    place: int
    sure: bool = False
    part: str = ""


class LexicalRetriever:
    """Rows by their names."""

    def __init__(self, files: SearchFiles) -> None:
        self._files = files

    def find(self, query: str, k: int, mask: npt.NDArray[np.bool_]) -> list[Match]:
        """Up to `k` of the allowed rows, the sure ones first, then by similarity and posts."""
        sure = self.named(query, k, mask) or self._read_as(fold(query), k, mask)
        likely: dict[int, Match] = {}
        for match in self._likely(query, k, mask):
            known = likely.get(match.row)
            if known is None or match.similarity > known.similarity:
                likely[match.row] = match
        named = {match.row for match in sure}
        rest = [match for row, match in likely.items() if row not in named]
        rest.sort(key=lambda match: (-match.similarity, -self._files.posts[match.row], match.row))
        return (sure + rest)[:k]

    def named(self, query: str, k: int, mask: npt.NDArray[np.bool_]) -> list[Match]:
        """The rows that have the query as a name: the surest kind first, then by posts."""
        for key in _spellings(query):
            entries = self._files.names.exactly(key)
            entries = _only(entries, (entries.kinds <= NameKind.EXPLANATION) & mask[entries.rows])
            if len(entries.rows):
                return list(_each_once(entries, lambda kind: SURE[kind], sure=True))[:k]
        return []

    def read_alike(self, query: str, k: int, mask: npt.NDArray[np.bool_]) -> list[Match]:
        """The rows whose Latin name is how a word in kana is read: serafuku of セーラー服."""
        letters = squeezed(romaji(query)) if has_kana(query) else ""
        entries = self._files.names.exactly(letters)
        entries = _only(entries, (entries.kinds <= NameKind.ALIAS) & mask[entries.rows])
        return list(_each_once(entries, lambda _: MatchReason.TRANSLITERATION, sure=True))[:k]

    def _likely(self, query: str, k: int, mask: npt.NDArray[np.bool_]) -> Iterator[Match]:
        key = fold(query)
        if not key or len(key) > LONGEST_COMPARED:
            return
        if "*" in key and key.strip("*"):
            yield from self._wildcard(key, mask)
        yield from self._beginning(simplified(key), k, mask)
        if is_cjk(key):
            yield from self._sounding(query, key, mask)
        elif len(latin(key)) >= SHORTEST_MISSPELT:
            yield from self._misspelt(key, mask)

    def _read_as(self, key: str, k: int, mask: npt.NDArray[np.bool_]) -> list[Match]:
        """Rows whose Chinese or Japanese name is read so: `shuangmawei`, `seerafuku`; `smw`, the
        initials, which are no word since they have no vowel.
        """
        letters = key.replace("_", "")
        initials = len(letters) >= SHORTEST_INITIALS and not VOWELS.search(letters)
        if is_cjk(key) or not (initials or len(letters) >= SHORTEST_READING):
            return []
        found: list[Match] = []
        for form, kind in (
            (letters, NameKind.PINYIN),
            (squeezed(letters), NameKind.ROMAJI),
            *([(letters, NameKind.INITIALS)] if initials else []),
        ):
            entries = self._files.names.exactly(form)
            entries = _only(entries, (entries.kinds == kind) & mask[entries.rows])
            found += _each_once(entries, lambda _kind: MatchReason.TRANSLITERATION, sure=True)
        return found[: min(k, MOST_READ)]

    def _beginning(self, key: str, k: int, mask: npt.NDArray[np.bool_]) -> Iterator[Match]:
        """The rows of most posts with a name that begins so."""
        entries = self._files.names.beginning(key)
        entries = _only(entries, (entries.kinds <= NameKind.OTHER_NAME) & mask[entries.rows])
        if len(entries.rows) > k:
            posts = self._files.posts[entries.rows]
            most = np.argpartition(-posts, k - 1)[:k]
            entries = _only(entries, np.sort(most))
        yield from _each_once(entries, lambda _kind: MatchReason.PREFIX)

    def _sounding(self, query: str, key: str, mask: npt.NDArray[np.bool_]) -> Iterator[Match]:
        """Rows with a Latin name that sounds like a Chinese or Japanese query."""
        readings = {squeezed(romaji(query))}
        if not has_kana(key):
            readings.add(squeezed("".join(pinyin(simplified(key)))))
        for letters in readings - {""}:
            names, cosines = self._files.sounds.similar(letters, NEAREST)
            rows = self._files.sounds.rows[names]
            kept = mask[rows] & (cosines >= LEAST_SIMILARITY)
            for row, cosine in zip(rows[kept].tolist(), cosines[kept].tolist(), strict=True):
                yield Match(row, MatchReason.TRANSLITERATION, cosine, -1)

    def _misspelt(self, key: str, mask: npt.NDArray[np.bool_]) -> Iterator[Match]:
        """Rows with a Latin name that is the query but for a few letters."""
        from rapidfuzz.distance import OSA

        sounds = self._files.sounds
        names, _ = sounds.similar(squeezed(latin(key)), NEAREST)
        names = names[mask[sounds.rows[names]]]
        numbers = sounds.names[names].tolist()
        for row, number in zip(sounds.rows[names].tolist(), numbers, strict=True):
            other = self._files.names.keys[number].decode()
            longer = max(len(key), len(other))
            most = min(longer // 4 + 1, 3)  # letters: 1 of 3, 2 of 4 to 7, 3 of 8
            distance = OSA.distance(key, other, score_cutoff=most)
            if distance <= most:
                yield Match(row, MatchReason.SPELLING, 1 - distance / longer, -1)

    def _wildcard(self, key: str, mask: npt.NDArray[np.bool_]) -> Iterator[Match]:
        """Rows with a name of this form, `*` for any letters: those of most posts."""
        form = b"[^\n]*".join(re.escape(part.encode()) for part in key.split("*"))
        pattern = re.compile(b"(?m)^" + form + b"$")
        rows: list[int] = []
        places: list[int] = []
        for entries in self._files.names.matching(pattern):
            entries = _only(entries, (entries.kinds <= NameKind.OTHER_NAME) & mask[entries.rows])
            rows += entries.rows.tolist()
            places += entries.places.tolist()
        order = sorted(range(len(rows)), key=lambda at: -self._files.posts[rows[at]])
        for at in order[:WILDCARD_ROWS]:
            yield Match(rows[at], MatchReason.PREFIX, 1.0, places[at])

    def name(self, query: str, match: Match, record: dict[str, Any]) -> str:
        """The name of a record that a match is about."""
        names = [name for name, _ in names_of(record["tag"], record["aliases"], record["text"])]
        if 0 <= match.place < len(names):
            return names[match.place]
        return _nearest(query, match.reason, names) if names else ""


def _spellings(query: str) -> Iterable[str]:
    """The keys by which a query may be a name, the most literal first; the tag of a whole text
    (`【通用】long_hair - 长发`) is one.
    """
    key, plain, text = fold(query), fold(unescaped(query)), parse_text(query)
    forms = [key, plain, simplified(key), simplified(plain), without_parentheses(simplified(plain))]
    forms += [fold(text.tag)] if text.category else []
    return [form for form in dict.fromkeys(forms) if form]


def _only(entries: Entries, which: Any) -> Entries:
    return Entries(entries.rows[which], entries.kinds[which], entries.places[which])


def _each_once(
    entries: Entries, reason: Callable[[NameKind], MatchReason], *, sure: bool = False
) -> Iterator[Match]:
    """A match for each row, by the first of its entries."""
    seen: set[int] = set()
    columns = (entries.rows.tolist(), entries.kinds.tolist(), entries.places.tolist())
    for row, kind, place in zip(*columns, strict=True):
        if row not in seen:
            seen.add(row)
            yield Match(row, reason(NameKind(kind)), 1.0, place, sure)


def _nearest(query: str, reason: MatchReason, names: list[str]) -> str:
    """Which of a record's names is most like the query, by letters or by sound."""
    from rapidfuzz.distance import OSA

    key = fold(query)
    if reason is MatchReason.TRANSLITERATION and is_cjk(key):
        key = squeezed(romaji(query)) or squeezed("".join(pinyin(key)))
        return min(names, key=lambda name: OSA.normalized_distance(key, latin(fold(name))))
    return min(names, key=lambda name: OSA.normalized_distance(key, fold(name)))
