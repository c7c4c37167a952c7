"""Latin names by their sound: an inverted index of the character trigrams of each.

A name is written as it might sound to whoever writes it in another script (`sound_of`), a border at
either end. Similarity is the cosine of trigrams weighted by rarity (TF-IDF, each counted once).

    sound_names      [names] the key of each name, by its number in the table of names
    sound_rows       [names] whose it is
    sound_norms      [names] the length of its vector
    sound_trigrams   [trigrams] the code of each, ascending
    sound_starts     [trigrams + 1] where the postings of each begin
    sound_postings   the names that have it, ascending
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array
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
MOST_POSTINGS = 80_000  # of a query's rarest trigrams
KEPT_PER_NAME = 5  # names that are compared by all trigrams, for each one asked for

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
    pairs = _trigrams_of(sounds)  # trigram * names + name
    # NumPy's `unique` hashes: for so many it takes thirty times as long, and more memory
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    codes, listed = np.divmod(pairs, max(len(numbers), 1))
    known, counts = np.unique(codes, return_counts=True)
    squares = np.repeat(_rarity(counts, len(numbers)) ** 2, counts)
    norms = np.sqrt(np.bincount(listed, weights=squares, minlength=len(numbers)))
    return {
        "sound_names": numbers.astype(np.int32),
        "sound_rows": rows.astype(np.int32),
        "sound_norms": norms.astype(np.float32),
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

    def similar(self, letters: str, count: int) -> tuple[npt.NDArray[np.int64], Array]:
        """The `count` names of highest similarity to squeezed letters, best first, and it."""
        asked = np.unique(_trigrams_of([sound_of(letters).encode()]))
        places = np.searchsorted(self._known, asked)
        places[places == len(self._known)] = 0
        trigrams = places[self._known[places] == asked] if len(self._known) else places[:0]
        weights = self._weights[trigrams]
        unknown = len(asked) - len(trigrams)  # as rare as can be
        norm = np.sqrt(np.sum(weights**2) + unknown * _rarity(np.zeros(1), len(self.names))[0] ** 2)
        lengths = self._starts[trigrams + 1] - self._starts[trigrams]
        order = np.argsort(lengths, kind="stable")  # the rarest trigram first
        lists = [
            self._postings[self._starts[trigram] : self._starts[trigram + 1]]
            for trigram in trigrams[order]
        ]
        found, sums = _sums(lists, weights[order] ** 2, count * KEPT_PER_NAME, self._norms)
        cosines = sums / (self._norms[found] * norm)
        best = np.lexsort((found, -cosines))[:count]
        return found[best], cosines[best].astype(np.float32)


def _sums(
    lists: Sequence[Array], squares: Array, count: int, norms: Array
) -> tuple[npt.NDArray[np.int64], Array]:
    """The likely best `count` names, ascending, and for each the sum of its trigrams' squares.

    They are chosen by the rarest trigrams, `MOST_POSTINGS` together: those tell names apart. The
    others are looked up for the names chosen.
    """
    read = np.cumsum([len(postings) for postings in lists])
    taken = max(1, int(np.searchsorted(read, MOST_POSTINGS, side="right")))
    marked = [
        postings.astype(np.int64) * len(lists) + number
        for number, postings in enumerate(lists[:taken])
    ]
    if not marked:
        return np.empty(0, np.int64), np.empty(0)
    keys = np.sort(np.concatenate(marked))  # by name: a scatter into all names misses every cache
    names, numbers = np.divmod(keys, len(lists))
    firsts = np.flatnonzero(np.diff(names, prepend=-1))
    sums, names = np.add.reduceat(squares[numbers], firsts), names[firsts]
    if len(names) > count:
        chosen = np.argpartition(-sums / norms[names], count - 1)[:count]
        chosen.sort()
        names, sums = names[chosen], sums[chosen]
    for postings, square in zip(lists[taken:], squares[taken:], strict=True):
        places = np.searchsorted(postings, names)
        places[places == len(postings)] = 0
        sums += square * (postings[places] == names)
    return names, sums
