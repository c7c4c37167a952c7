"""Which tags are not safe for work where a dump does not say: by a list of names, or by words.

Words are whole words of the tag, so that `cockpit` and `essex_(azur_lane)` stay. Names of artists,
characters and works are no descriptions: they are left as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from danbooru_index.choices import Choice
from danbooru_index.ingest.names import name_key
from danbooru_index.records import Record

WORD_LIST = Path(__file__).with_name("nsfw_words.txt")
PROPER_NAMES = frozenset(
    {
        *("artist", "character", "copyright", "contributor", "oc", "species"),
        *("content-official", "content-fanmade", "画师", "艺术家", "角色", "人物角色", "作品"),
        *("版权", "アーティスト", "キャラクター", "著作権"),
    }
)


class MarkSource(Choice):
    """Where a dump's marks of what is not safe for work come from."""

    INPUT = "input"  # its own columns nsfw or rating, or its category NSFW
    WORDS = "words"  # by words of the tag: the dump has no ratings
    LIST = "list"  # --nsfw-tags
    NONE = "no ratings"  # the dump has none, and no words were asked for


@cache
def word_patterns() -> tuple[frozenset[str], re.Pattern[str], frozenset[str]]:
    """(words, phrases as one pattern over words joined by `_`, tags that stay) of the list.

    The list has a word or a phrase a line; `!tag`: a tag that is safe although it has such words.
    """
    lines = WORD_LIST.read_text(encoding="utf-8").splitlines()
    entries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    safe = frozenset(entry[1:] for entry in entries if entry.startswith("!"))
    plain = [entry for entry in entries if not entry.startswith("!")]
    phrases = [re.escape(entry) for entry in plain if "_" in entry]
    pattern = re.compile(rf"(?:^|_)(?:{'|'.join(phrases) or '(?!)'})(?:_|$)")
    return frozenset(entry for entry in plain if "_" not in entry), pattern, safe


def is_nsfw_by_words(tag: str, category: str = "") -> bool:
    """Whether a tag has a word of the list, and is no one's name."""
    if category.strip().casefold() in PROPER_NAMES:
        return False
    words, phrases, safe = word_patterns()
    parts = [part for part in re.split(r"[\W_]+", tag.casefold()) if part]
    joined = "_".join(parts)
    if joined in safe:
        return False
    return not words.isdisjoint(parts) or phrases.search(joined) is not None


@dataclass(slots=True)
class NsfwMarks:
    """How the records of an input are marked; how many, by where the mark comes from.

    `listed`: the names of `--nsfw-tags`, in their normal form. `by_words`: whether words count
    where a dump has no ratings; `found`: how many records of this pass are in the lists. `rated`:
    the dumps that were found to have ratings.
    """

    listed: frozenset[str] = frozenset()
    by_words: bool = True
    found: int = 0
    rated: set[str] = field(default_factory=set)

    def mark(self, record: Record, dump: str) -> MarkSource | None:
        """Why a record is not safe for work; None: nothing says so."""
        listed = bool(self.listed) and name_key(record.tag) in self.listed
        self.found += listed
        if record.nsfw:
            return MarkSource.INPUT
        if listed:
            return MarkSource.LIST
        if self.by_words and dump not in self.rated:
            return MarkSource.WORDS if is_nsfw_by_words(record.tag, record.category) else None
        return None

    def source(self, dumps: list[str]) -> str:
        """How an input's marks are made, in words: `input`, `words`, `list+words`, `no ratings`."""
        kinds = [MarkSource.LIST.value] if self.listed else []
        if not self.rated.isdisjoint(dumps):
            kinds.append(MarkSource.INPUT.value)
        if not self.rated.issuperset(dumps):
            unrated = MarkSource.WORDS if self.by_words else MarkSource.NONE
            kinds.append(unrated.value)
        return "+".join(kinds)
