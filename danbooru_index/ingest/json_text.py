"""JSON of any shape, streamed: records a line, arrays, pages of arrays, a map of names.

Values are parsed one at a time by Python's own decoder, so that memory holds one value, a broken
one is told by its place, and a repeated name is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from danbooru_index.records import Reason, RejectedError

LONGEST_VALUE = 16 << 20  # characters
CHUNK = 1 << 16
SPACE = " \t\r\n"
IN_NUMBERS = "0123456789.eE+-"
MOST_KEYS = 40  # of a record, or beside the list of a page: an object with more is a map
LISTS = ("tag", "tags", "wiki_pages", "data", "items", "results", "records", "rows", "response")


def object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated names: Python would silently take the last value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"the name {twice!r} occurs twice")
    return fields


# NaN, as pandas writes a missing value, is one.
DECODER = json.JSONDecoder(parse_constant=lambda constant: None, object_pairs_hook=object_once)


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object; raise `RejectedError` for anything else."""
    try:
        fields = DECODER.decode(text.strip(SPACE))
    except (ValueError, RecursionError) as error:
        raise RejectedError(Reason.UNPARSABLE_LINE, str(error)) from None
    if not isinstance(fields, dict):
        raise RejectedError(
            Reason.UNPARSABLE_LINE, f"a JSON object is needed, not {type(fields).__name__}"
        )
    return fields


class BrokenJsonError(ValueError):
    """JSON that ends or breaks in the middle; the message says where."""


@dataclass(slots=True)
class JsonStream:
    """A cursor over JSON text; `line` counts from 1."""

    source: TextIO
    buffer: str = ""
    at: int = 0
    line: int = 1
    ended: bool = False
    depth: list[str] = field(default_factory=list)

    def peek(self) -> str:
        """The next character that is not space, empty at the end; nothing is taken."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in SPACE:
                self.line += self.buffer[self.at] == "\n"
                self.at += 1
            if self.at < len(self.buffer) or not self._fill(CHUNK):
                return self.buffer[self.at : self.at + 1]

    def opens_objects(self) -> bool:
        """Whether a list of objects comes next; nothing is taken."""
        if self.peek() != "[":
            return False
        while True:
            inner = self.buffer[self.at + 1 :].lstrip(SPACE)
            if inner or not self._fill(CHUNK):
                return inner[:1] == "{"

    def take(self, wanted: str) -> bool:
        """Whether `wanted` comes next; it is then behind the cursor."""
        found = self.peek() == wanted
        self.at += found
        return found

    def need(self, wanted: str) -> None:
        """Take `wanted`; raise `BrokenJsonError` where something else stands."""
        if not self.take(wanted):
            raise BrokenJsonError(f"line {self.line}: {wanted!r} is needed")

    def value(self) -> Any:
        """The next value, whole. Raises `BrokenJsonError`."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
                if self.ended or not self._may_go_on(value, end):
                    break
                problem = ""
            except json.JSONDecodeError as error:
                problem = error.msg
            except (ValueError, RecursionError) as error:
                raise BrokenJsonError(f"line {self.line}: {error}") from None
            too_long = len(self.buffer) - self.at > LONGEST_VALUE
            if too_long or not self._fill(size):
                problem = problem or "the value is too long"
                raise BrokenJsonError(f"line {self.line}: {problem}")
            size *= 2  # so that a long value is not parsed again for every chunk
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end
        return value

    def _may_go_on(self, value: Any, end: int) -> bool:
        """Whether a value that ends at `end` may be longer: a number cut by the end of a chunk."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return not self.buffer[end:].strip(IN_NUMBERS)

    def _fill(self, size: int) -> bool:
        """Read on; what lies behind the cursor is given up. Whether there was more."""
        more = "" if self.ended else self.source.read(size)
        self.ended = not more
        self.buffer = self.buffer[self.at :] + more
        self.at = 0
        return bool(more)


def read_values(
    source: TextIO, is_record: Callable[[dict[str, Any]], bool] = lambda _: False
) -> Iterator[tuple[int, Any]]:
    """(line, value) of every record in a JSON text: of its arrays the items; of its objects those
    that are one, as `is_record` says of short ones; of an object that holds a list of records
    (`{"tags": [...]}`) the list's items; of a map of names to texts or objects (name, value) pairs,
    which come as a tuple. Raises `BrokenJsonError`.
    """
    stream = JsonStream(source)
    while mark := stream.peek():
        if mark == "[":
            yield from _items(stream)
        elif mark == "{":
            yield from _members(stream, is_record)
        else:
            raise BrokenJsonError(f"line {stream.line}: an array or an object is needed")


def _items(stream: JsonStream) -> Iterator[tuple[int, Any]]:
    stream.need("[")
    if stream.take("]"):
        return
    while True:
        stream.peek()
        yield stream.line, stream.value()
        if stream.take("]"):
            return
        stream.need(",")


def _members(
    stream: JsonStream, is_record: Callable[[dict[str, Any]], bool]
) -> Iterator[tuple[int, Any]]:
    """The members of an object as (name, value) pairs, or the object, if it is a record; of one
    that holds records in a list, only these: what stands beside the list is about the page.
    """
    stream.need("{")
    if stream.take("}"):
        return
    first: list[tuple[int, Any]] = []  # pairs held back while a list may still come
    is_page = is_map = False
    while True:
        stream.peek()
        line, name = stream.line, stream.value()
        if not isinstance(name, str):
            raise BrokenJsonError(f"line {line}: a name in quotes is needed")
        stream.need(":")
        if name in LISTS and stream.opens_objects():
            is_page = True
            yield from _items(stream)
        else:
            value = stream.value()
            inside = _records_in(value) if name in LISTS else []
            is_page = is_page or bool(inside)
            yield from ((line, record) for record in inside)
            first.append((line, (name, value)))
        if is_page:
            first.clear()
        elif len(first) > MOST_KEYS:
            is_map = True
            yield first.pop(0)
        if stream.take("}"):
            whole = {} if is_map or is_page else _object(first)
            yield from [(first[0][0], whole)] if whole and is_record(whole) else first
            return
        stream.need(",")


def _object(pairs: list[tuple[int, Any]]) -> dict[str, Any]:
    try:
        return object_once([pair for _, pair in pairs])
    except ValueError as error:
        raise BrokenJsonError(f"line {pairs[0][0]}: {error}") from None


def _records_in(value: Any) -> list[Any]:
    """The records in an object around a page's list: `{"data": {"tags": [...]}}`."""
    if not isinstance(value, dict):
        return []
    lists = (inner for name, inner in value.items() if name in LISTS and isinstance(inner, list))
    return next((inner for inner in lists if inner and isinstance(inner[0], dict)), [])
