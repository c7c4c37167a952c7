"""Queries as people send them: lines of text in whatever encoding, cleaned, or refused one by one.

Called by `search` for every query, and by the command line for the lines of its standard input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from danbooru_index.errors import UsageError
from danbooru_index.records import is_blank

LONGEST_QUERY_BYTES = 1 << 16  # a hundred times what the model reads
SHOWN = 60
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# The encodings of Chinese and Japanese, and the first bytes of their kana and frequent ideographs.
# (GB 18030 has kana where EUC-JP has them; a text with some is taken for Japanese.)
COMMON = {
    "gb18030": ((0xB0, 0xD7),),
    "euc_jp": ((0xA4, 0xA5), (0xB0, 0xCF)),
    "big5": ((0xA4, 0xC6),),
    "cp932": ((0x82, 0x83), (0x88, 0x97)),
}


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


def likely_encoding(content: bytes) -> str | None:
    """The encoding in which most characters of these bytes are common ones; None where they are
    valid in none.

    charset-normalizer needs longer texts: of four tags in GBK it named three Big5 or Korean.
    """
    shares: dict[str, float] = {}
    for encoding, ranges in COMMON.items():
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        firsts = [character.encode(encoding)[0] for character in text if ord(character) > 127]
        common = sum(any(low <= first <= high for low, high in ranges) for first in firsts)
        shares[encoding] = common / max(1, len(firsts))
    best = max(shares, key=lambda encoding: shares[encoding], default=None)
    return best if best and shares[best] else None


def shortened(text: str, limit: int = SHOWN) -> str:
    """A text for a terminal: on one line, without control characters, cut at `limit` characters."""
    line = "".join(character if character.isprintable() else " " for character in text[: limit + 1])
    return line if len(text) <= limit else f"{line[: limit - 1]}…"
