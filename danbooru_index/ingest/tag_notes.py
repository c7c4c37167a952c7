"""What other files say of a tag: files of translations, and the site's wiki pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from danbooru_index.ingest.names import name_key

# Pages of a wiki that are about something else than one tag.
NO_TAG_PAGES = ("help:", "about:", "howto:", "api:", "tag_group:", "pool_group:", "template:")
NO_TAG_PREFIXES = (*NO_TAG_PAGES, "list_of_", "meta:", "fun:", "user:", "forum:", "e621:")


@dataclass(slots=True)
class Notes:
    """What is said of one tag."""

    translations: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    description: str = ""


NOTHING = Notes()


@dataclass(slots=True)
class TagNotes:
    """Notes by tag, joined whatever a name's case, spaces or underscores; which of them were.

    `passed_over`: wiki pages that are deleted, unreadable, or about no tag.
    """

    by_key: dict[str, Notes] = field(default_factory=dict)
    translated: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)
    passed_over: int = 0

    def translate(self, tag: str, texts: Iterable[str]) -> str:
        """Add explanations of a tag, each once; the tag in its normal form."""
        key = name_key(tag)
        notes = self.by_key.setdefault(key, Notes())
        new = [text.strip() for text in texts if text.strip()]
        notes.translations += [text for text in new if text not in notes.translations]
        self.translated.add(key)
        return key

    def describe(self, title: str, names: Sequence[str], description: str) -> None:
        """Add a wiki page."""
        notes = self.by_key.setdefault(name_key(title), Notes())
        notes.names += [name for name in names if name not in notes.names]
        notes.description = notes.description or description

    def of(self, tag: str) -> Notes:
        """What is said of a tag; it counts as joined."""
        if not self.by_key:
            return NOTHING
        key = name_key(tag)
        notes = self.by_key.get(key)
        if notes is None:
            return NOTHING
        self.joined.add(key)
        return notes

    @property
    def joined_translations(self) -> int:
        """How many tags of the translations name a record."""
        return len(self.joined & self.translated)


def is_tag_page(title: str, *, deleted: bool = False) -> bool:
    """Whether a wiki page is about a tag."""
    return not deleted and not title.casefold().replace(" ", "_").startswith(NO_TAG_PREFIXES)
