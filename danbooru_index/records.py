"""A tag record: its fields, how it is parsed and checked, why one is rejected.

Used by `shards` (which reads and writes records) and by everything after it, which may trust that a
`Record` is valid.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from enum import Enum

# What leaves no mark though Unicode calls it a letter, a symbol or a mark: fillers, the empty
# Braille cell, selectors.
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(
    map(chr, range(0xFE00, 0xFE10))
)
VISIBLE = rf"[^\p{{Cc}}\p{{Cf}}\p{{Z}}{INVISIBLE}]"  # as a regular expression of RE2

_TEXT_FORM = re.compile(r"【(?P<category>[^】]*)】(?P<rest>.*)", re.DOTALL)


class Reason(str, Enum):
    """Why a record was left out. The values are the keys of `rejected` in every report."""

    UNPARSABLE_LINE = "unparsable_line"
    MISSING_ID = "missing_id"
    EMPTY_ID = "empty_id"
    MISSING_TEXT = "missing_text"
    EMPTY_TEXT = "empty_text"
    DUPLICATE_ID = "duplicate_id"
    TEXT_TOO_LONG = "text_too_long"
    INVALID_UNICODE = "invalid_unicode"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_CATEGORY = "unknown_category"
    NON_FINITE_OUTPUT = "non_finite_output"


@dataclass(frozen=True, slots=True)
class Record:
    """One tag: `text` is what is embedded, never altered; the rest is what is known of it."""

    id: str
    text: str
    tag: str = ""
    category: str = ""
    explanation: str = ""
    source: str = ""
    post_count: int | None = None
    aliases: tuple[str, ...] = ()
    nsfw: bool = False
    deprecated: bool = False


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that was left out: why, its line (`line` counts from 1), and what it held."""

    reason: Reason
    source: str
    line: int
    detail: str = ""
    content: str = ""

    def to_json(self) -> str:
        """One line for the rejects file."""
        fields = {
            "reason": self.reason.value,
            "source": self.source,
            "line": self.line,
            "detail": self.detail,
            "content": self.content,
        }
        return json.dumps(fields, ensure_ascii=False)


class RejectedError(Exception):
    """Raised by the parsers below for a record to leave out; callers make a `Reject` of it."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TextParts:
    """What a text of the form `【category】tag - explanation` says."""

    category: str = ""
    tag: str = ""
    explanation: str = ""


def parse_text(text: str) -> TextParts:
    """Split `【category】tag - explanation` at its first ` - `; missing parts are empty."""
    match = _TEXT_FORM.fullmatch(text)
    category, rest = (match["category"], match["rest"]) if match else ("", text)
    tag, _, explanation = rest.partition(" - ")
    return TextParts(category.strip(), tag.strip(), explanation.strip())


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, control and other invisible characters."""
    return all(
        c in INVISIBLE or unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text
    )


def describe_rejects(rejected: Counter[str]) -> str:
    """`12 duplicate_id, 3 empty_text`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in rejected.most_common())
