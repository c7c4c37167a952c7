"""Queries as people send them: lines of text in whatever encoding, cleaned, or refused one by one.

Called by `search` for every query, and by the command line for the lines of its standard input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from danbooru_index.choices import Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.encodings import likely_encoding
from danbooru_index.errors import UsageError
from danbooru_index.records import is_blank

LONGEST_QUERY_BYTES = 1 << 16  # a hundred times what the model reads
SHOWN = 60
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Asked:
    """How queries are to be answered."""

    mode: Mode
    limit: int
    weights: Weights
    fusion: Fusion
    wanted: Filter
    explain: bool = False


def checked_query(query: str) -> str:
    """The query, without BOM; raise `UsageError` if empty, too long or not Unicode."""
    query = query.lstrip("\ufeff")
    if is_blank(query):
        raise UsageError("the query is empty")
    try:
        size = len(query.encode())
    except UnicodeEncodeError:
        raise UsageError("the query is not valid UTF-8") from None
    if size > LONGEST_QUERY_BYTES:
        raise UsageError(
            f"the query has {size:,} bytes; at most {LONGEST_QUERY_BYTES:,}: {shortened(query)}"
        )
    return query


def query_lines(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Each line that is not empty, as it comes: a query, or what is wrong with the line."""
    for number, raw in enumerate(lines, 1):
        if number == 1 and raw.startswith(UTF16_MARKS):
            raise UsageError("the queries are UTF-16; UTF-8 is needed: iconv -f UTF-16 -t UTF-8")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if line:
                yield checked_query(line), ""
        except UnicodeDecodeError:
            yield "", f"line {number}: {not_utf8(raw.strip())}"
        except UsageError as error:
            yield "", f"line {number}: {error}"


def not_utf8(content: bytes) -> str:
    """What bytes that are not UTF-8 most likely are, and how to convert them."""
    found = likely_encoding(content)
    if found is None:
        return "not UTF-8, nor any other encoding that is known here"
    text = shortened(content.decode(found, errors="replace"))
    return (
        f"not UTF-8; it is {found.upper()}, as it seems ({text}): iconv -f {found.upper()} -t UTF-8"
    )


def shortened(text: str, limit: int = SHOWN) -> str:
    """A text for a terminal: on one line, without control characters, cut at `limit` characters."""
    line = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return line if len(text) <= limit else f"{line[: limit - 1]}…"
