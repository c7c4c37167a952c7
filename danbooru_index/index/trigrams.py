"""Latin names by their sound: an inverted index of the character trigrams of each.

A name is written as it might sound to whoever writes it in another script (`sound_of`), a border at
either end. Similarity is the cosine of trigrams weighted by rarity (TF-IDF, each counted once).

    sound_names      [names] the key of each name, by its number in the table of names
    sound_rows       [names] whose it is
    sound_norms      [names] the length of its vector, ascending (not in earlier generations)
    sound_trigrams   [trigrams] the code of each, ascending
    sound_starts     [trigrams + 1] where the postings of each begin
    sound_postings   the names that have it, ascending
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array
from danbooru_index.index.inverted import kth_highest, places_in
from danbooru_index.index.names import NameKind
from danbooru_index.index.transliteration import latin

LETTERS = " 0123456789abcdefghijklmnopqrstuvwxyz"  # the first stands for a border
BASE = len(LETTERS)
# Sounds that Japanese and pinyin write otherwise than English, one after another; then vowels that
# are no letters of their own.
SOUNDS = (
    *(("th", "s"), ("ph", "f"), ("ck", "k"), ("ch", "t"), ("sh", "s"), ("ts", "t")),
    *(("c", "k"), ("q", "k"), ("l", "r"), ("v", "b"), ("x", "ks"), ("j", "z")),
    *(("y", "i"), ("w", "u"), ("h", "f")),
)
SEED_POSTINGS = 20_000  # of a query's rarest trigrams: among these names are likely good ones
SEEDS_PER_NAME = 4  # names that are compared at first, for each one asked for
MOST_IN_BYTES = 64  # trigrams of a query whose sum is kept in a byte a name, else in two
BLOCK = 32_768  # names whose bounds are looked at together
A_LITTLE_LESS = 1 - 1e-6  # sums in another order differ in their last digits

_CODES = np.zeros(256, np.int64)
_CODES[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(BASE)


def sound_of(letters: str) -> str:
    """Squeezed Latin letters as they sound to who writes them in another script.

    >>> sound_of("christina"), sound_of("kurisutina")
    ('tristina', 'kurisutina')
    """
    for written, sound in SOUNDS:
        letters = letters.replace(written, sound)
    return letters


def trigram_arrays(names: Mapping[str, Array]) -> dict[str, Array]:
    """The index over the Latin tags, aliases and abbreviations of a table of names."""
    numbers, rows = _latin_entries(names)
    sounds, kept = _sounds(names, numbers)
    numbers, rows = numbers[kept], rows[kept]
    pairs = _distinct(_trigrams_of(sounds))  # trigram * names + name
    codes, listed = np.divmod(pairs, max(len(numbers), 1))
    known, counts = np.unique(codes, return_counts=True)
    squares = np.repeat(_rarity(counts, len(numbers)) ** 2, counts)
    norms = np.sqrt(np.bincount(listed, weights=squares, minlength=len(numbers)))
    order = np.argsort(norms, kind="stable")
    listed = _renumbered(codes, listed, order)
    return {
        "sound_names": numbers[order].astype(np.int32),
        "sound_rows": rows[order].astype(np.int32),
        "sound_norms": norms[order].astype(np.float32),
        "sound_trigrams": known.astype(np.int32),
        "sound_starts": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        "sound_postings": listed.astype(np.int32),
    }


def _latin_entries(names: Mapping[str, Array]) -> tuple[Array, Array]:
    """The key's number and the row of every entry of a tag, an alias or an abbreviation."""
    numbers = np.repeat(np.arange(len(names["name_entries"]) - 1), np.diff(names["name_entries"]))
    wanted = np.asarray(names["name_kinds"]) <= NameKind.ABBREVIATION
    return numbers[wanted], np.asarray(names["name_rows"])[wanted]


def _sounds(names: Mapping[str, Array], numbers: Array) -> tuple[list[bytes], Array]:
    """How the keys of these numbers sound, and which of them have letters at all."""
    blob, starts = np.asarray(names["name_keys"]).tobytes(), names["name_starts"].tolist()
    sounds = [
        sound_of(latin(blob[starts[number] : starts[number + 1]].decode())).encode()
        for number in numbers.tolist()
    ]
    kept = np.array([bool(sound) for sound in sounds], dtype=bool)
    return [sound for sound in sounds if sound], kept


def _trigrams_of(sounds: list[bytes]) -> npt.NDArray[np.int64]:
    """Every trigram of every name, as trigram * names + name."""
    text = b" " + b" ".join(sounds) + b" "
    codes = _CODES[np.frombuffer(text, np.uint8)]
    if len(codes) < 3:
        return np.empty(0, np.int64)
    trigrams = (codes[:-2] * BASE + codes[1:-1]) * BASE + codes[2:]
    border = codes[1:-1] == 0  # a trigram over two names
    owners = np.cumsum(codes == 0)[:-2] - 1  # a border begins a name
    pairs: npt.NDArray[np.int64] = (trigrams * max(len(sounds), 1) + owners)[~border]
    return pairs


def _renumbered(codes: Array, listed: Array, order: Array) -> Array:
    """The postings of ascending codes, where names are numbered in another order."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    pairs = codes * len(order) + places[listed]
    pairs.sort()
    renumbered: Array = pairs - codes * len(order)
    return renumbered


def _distinct(values: Array) -> Array:
    """Each value of 0 or more once, ascending; `values` are sorted in place. NumPy's `unique`
    hashes: for many it takes thirty times as long, and more memory.
    """
    values.sort()
    distinct: Array = values[np.diff(values, prepend=-1) != 0]
    return distinct


def _rarity(counts: Array, names: int) -> npt.NDArray[np.float64]:
    """IDF as scikit-learn smooths it."""
    weights: npt.NDArray[np.float64] = np.log((1 + names) / (1 + counts)) + 1
    return weights


class SoundIndex:
    """Names that sound like a query."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.names, self.rows = arrays["sound_names"], arrays["sound_rows"]
        self._norms, self._postings = arrays["sound_norms"], arrays["sound_postings"]
        self._known, self._starts = arrays["sound_trigrams"], arrays["sound_starts"]
        self._weights = _rarity(np.diff(self._starts), len(self.names))
        firsts = np.arange(0, len(self.names), BLOCK)
        self._shortest = np.minimum.reduceat(self._norms, firsts) if len(firsts) else self._norms

    def similar(self, letters: str, count: int) -> tuple[npt.NDArray[np.int64], Array]:
        """The `count` names of highest similarity to squeezed letters, best first, and it."""
        lists, squares, norm = self._asked(letters)
        if not lists:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        bounds, steps = _bounds(lists, squares, len(self._norms))
        seeds = _seeds(lists, bounds, SEEDS_PER_NAME * count)
        least = kth_highest(_sums(lists, squares, seeds) / (self._norms[seeds] * norm), count)
        found = self._above(bounds, A_LITTLE_LESS * steps * least * norm)
        cosines = _sums(lists, squares, found) / (self._norms[found] * norm)
        best = np.lexsort((found, -cosines))[:count]
        return found[best], cosines[best].astype(np.float32)

    def _above(self, bounds: Array, needed: float) -> npt.NDArray[np.int64]:
        """The names whose bound is above 0 and `needed` times their length, ascending. By blocks:
        of few names is the length looked at.
        """
        found = [np.empty(0, np.int64)]
        least = np.clip(needed * self._shortest, 1, np.iinfo(bounds.dtype).max).astype(bounds.dtype)
        for start, bound in zip(range(0, len(bounds), BLOCK), least, strict=True):
            found.append(np.flatnonzero(bounds[start : start + BLOCK] >= bound) + start)
        names = np.concatenate(found)
        above: npt.NDArray[np.int64] = names[bounds[names] >= needed * self._norms[names]]
        return above

    def _asked(self, letters: str) -> tuple[list[Array], Array, float]:
        """The postings of each trigram of squeezed letters, the rarest first; the squares of the
        trigrams' weights; the length of the letters' vector.
        """
        asked = np.unique(_trigrams_of([sound_of(letters).encode()]))
        places, known = places_in(self._known, asked)
        trigrams = places[known]
        squares = self._weights[trigrams] ** 2
        unknown = len(asked) - len(trigrams)  # as rare as can be
        rarest = float(_rarity(np.zeros(1), len(self.names))[0])
        norm = float(np.sqrt(np.sum(squares) + unknown * rarest**2))
        order = np.argsort(self._starts[trigrams + 1] - self._starts[trigrams], kind="stable")
        lists = [
            self._postings[self._starts[trigram] : self._starts[trigram + 1]]
            for trigram in trigrams[order]
        ]
        return lists, squares[order], norm


def _bounds(lists: Sequence[Array], squares: Array, names: int) -> tuple[Array, float]:
    """For each name no less than the sum of its trigrams' squares, in whole steps; and how many
    steps a unit has. Bytes: those of a million names stay in the cache, sums of floats do not.
    """
    kind = np.uint8 if len(lists) <= MOST_IN_BYTES else np.uint16
    steps = (np.iinfo(kind).max - len(lists)) / float(np.sum(squares))
    bounds: Array = np.zeros(names, kind)
    for postings, square in zip(lists, squares, strict=True):
        bounds[postings.astype(np.intp)] += kind(np.ceil(square * steps))
    return bounds, steps


def _seeds(lists: Sequence[Array], bounds: Array, count: int) -> Array:
    """Up to `count` names that are likely among the best, ascending: those of the highest bounds
    that have one of the rarest trigrams.
    """
    read = np.cumsum([len(postings) for postings in lists])
    taken = max(1, int(np.searchsorted(read, SEED_POSTINGS, side="right")))
    names = _distinct(np.concatenate(lists[:taken]))
    if len(names) > count:
        names = names[np.argpartition(bounds[names], len(names) - count)[len(names) - count :]]
        names.sort()
    return names


def _sums(lists: Sequence[Array], squares: Array, names: Array) -> Array:
    """For each of some names the sum of its trigrams' squares."""
    sums = np.zeros(len(names))
    for postings, square in zip(lists, squares, strict=True):
        sums += square * places_in(postings, names)[1]
    return sums
