"""Fields as users have them -> a `Record`, or a `RejectedError` with the reason.

Called by the readers of dumps and of shards; nothing is guessed that a later stage could not undo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danbooru_index.choices import Site
from danbooru_index.config import MAX_TEXT_BYTES
from danbooru_index.ingest.json_text import DECODER, object_once, parse_object
from danbooru_index.ingest.sites import CATEGORY_NAMES
from danbooru_index.records import Reason, Record, RejectedError, is_blank, parse_text

CATEGORIES = {str(number): name for number, name in CATEGORY_NAMES[Site.DANBOORU].items()}
NSFW_RATINGS = {"q", "e", "questionable", "explicit", "nsfw", "mature", "adult", "r18", "r18g"}
SAFE_RATINGS = {"", "g", "s", "general", "safe", "sensitive", "sfw"}
INT64_MAX = 2**63 - 1


def parse_line(line: str) -> Record:
    """One JSON line -> a record; raise `RejectedError`."""
    return parse_fields(parse_object(line))


def parse_fields(fields: Mapping[str, Any]) -> Record:
    """Fields as a user has them -> a record; raise `RejectedError`.

    Optional fields are also looked for in `metadata`. Tag, category and explanation come from the
    fields where they are, else from the text.
    """
    record_id = _identifier(fields)
    text = _text(fields)
    extra = _metadata(fields.get("metadata"))
    known = {**extra, **{k: v for k, v in fields.items() if v is not None}} if extra else fields
    parts = parse_text(text)
    category = _category(known) or parts.category
    return Record(
        id=record_id,
        text=text,
        tag=_string(known, "tag") or parts.tag,
        category=category,
        explanation=_string(known, "explanation") or parts.explanation,
        source=_string(known, "source"),
        post_count=_count(known),
        aliases=_aliases(known),
        nsfw=_nsfw(known, category),
        deprecated=_flag(known, "deprecated") or _flag(known, "is_deprecated") or False,
    )


def _metadata(value: Any) -> Mapping[str, Any]:
    """Further fields: an object, its JSON text, or Arrow's map pairs; else none."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = DECODER.decode(value.strip())
        except (ValueError, RecursionError) as error:
            raise RejectedError(Reason.WRONG_TYPE, f"metadata is not JSON: {error}") from None
    if isinstance(value, list) and all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in value
    ):
        try:
            value = object_once(value)
        except (TypeError, ValueError) as error:
            raise RejectedError(Reason.WRONG_TYPE, f"metadata: {error}") from None
    if value is None or isinstance(value, str):
        return {}
    if not isinstance(value, Mapping):
        raise RejectedError(
            Reason.WRONG_TYPE, f"metadata is a {type(value).__name__}, not an object"
        )
    return value


def _identifier(fields: Mapping[str, Any]) -> str:
    value = fields.get("id")
    if value is None:
        raise RejectedError(Reason.MISSING_ID)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RejectedError(
            Reason.WRONG_TYPE, f"id is a {type(value).__name__}, not a string or an integer"
        )
    if is_blank(value):
        raise RejectedError(Reason.EMPTY_ID)
    return _unicode(value, "id")


def _text(fields: Mapping[str, Any]) -> str:
    value = fields.get("text")
    if value is None:
        raise RejectedError(Reason.MISSING_TEXT)
    if not isinstance(value, str):
        raise RejectedError(Reason.WRONG_TYPE, f"text is a {type(value).__name__}, not a string")
    if is_blank(value):
        raise RejectedError(Reason.EMPTY_TEXT)
    _unicode(value, "text")
    if len(value) > MAX_TEXT_BYTES // 4 and len(value.encode()) > MAX_TEXT_BYTES:
        raise RejectedError(
            Reason.TEXT_TOO_LONG, f"{len(value.encode())} bytes; at most {MAX_TEXT_BYTES}"
        )
    return value


def _unicode(value: str, name: str) -> str:
    """`value`, if it can be written as UTF-8: JSON admits lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RejectedError(
            Reason.INVALID_UNICODE, f"{name}: {error.reason} at character {error.start}"
        ) from None
    return value


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RejectedError(Reason.WRONG_TYPE, f"{name} is a {type(value).__name__}, not a string")
    return _unicode(str(value), name)


def _category(fields: Mapping[str, Any]) -> str:
    """The category; of the numbers that Danbooru has for them, the name."""
    name = _string(fields, "category")
    return CATEGORIES.get(name, name) if isinstance(fields.get("category"), int) else name


def _count(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("post_count")
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
            raise ValueError
        # A column with missing values comes out of pandas as decimals.
        count = int(value.strip().removesuffix(".0") if isinstance(value, str) else value)
    except (ValueError, TypeError, OverflowError):
        raise RejectedError(
            Reason.WRONG_TYPE, f"post_count is {str(value)[:40]!r}, not an integer"
        ) from None
    if abs(count) > INT64_MAX:
        raise RejectedError(Reason.WRONG_TYPE, f"post_count {str(count)[:40]} does not fit 64 bits")
    return count


def _aliases(fields: Mapping[str, Any]) -> tuple[str, ...]:
    value = fields.get("aliases")
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not all(isinstance(alias, str) for alias in value):
        raise RejectedError(Reason.WRONG_TYPE, "aliases is not a list of strings")
    return tuple(_unicode(alias.strip(), "aliases") for alias in value if alias.strip())


def _flag(fields: Mapping[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise RejectedError(Reason.WRONG_TYPE, f"{name} is {str(value)[:40]!r}, not true or false")


def _nsfw(fields: Mapping[str, Any], category: str) -> bool:
    """The input's `nsfw`; else true for rating q or e; else true for the category NSFW."""
    flag = _flag(fields, "nsfw")
    if flag is not None:
        return flag
    rating = _string(fields, "rating").strip().lower().removeprefix("rating:").replace("-", "")
    if rating in NSFW_RATINGS:
        return True
    if rating not in SAFE_RATINGS:  # it may mean anything, and NSFW is never guessed to be safe
        raise RejectedError(Reason.WRONG_TYPE, f"rating is {rating[:40]!r}, none of g, s, q and e")
    return category.strip().lower() == "nsfw"
