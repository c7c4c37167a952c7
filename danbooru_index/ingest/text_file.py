"""Text files as they come: compressed or zipped, in any encoding -> their lines, as UTF-8.

What cannot be decoded never stops a file: its line is told apart, so that its row becomes a reject.
"""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from danbooru_index.errors import InputError, first_line
from danbooru_index.records import Reason, RejectedError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LONGEST_LINE = 16 << 20
UTF8 = "utf-8"
UNDECODABLE = "\udcff"  # stands for bytes that an encoding does not have; no UTF-8 text holds it

codecs.register_error("danbooru_index", lambda error: (UNDECODABLE, _end(error)))


def _end(error: UnicodeError) -> int:
    return error.end if isinstance(error, UnicodeDecodeError) else 0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text file, in UTF-8 without its end; None if longer than `LONGEST_LINE`."""

    number: int
    content: bytes | None

    def decode(self) -> str:
        """The line as text; raise `RejectedError`."""
        if self.content is None:
            raise RejectedError(Reason.TEXT_TOO_LONG, f"a line of more than {LONGEST_LINE} bytes")
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise RejectedError(
                Reason.INVALID_UNICODE, f"{error.reason} at byte {error.start}"
            ) from None

    @property
    def shown(self) -> str:
        """The beginning of the line, for the file of rejects."""
        return (self.content or b"")[:2000].decode(errors="replace")


def inner_name(path: Path) -> str:
    """The name of what a file holds: without `.gz` or `.zst`; of a `.zip`, its one file."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return path.name[: -len(suffix)]
    if suffix == ".zip":
        return _only_member(path).filename
    return path.name


def _only_member(path: Path) -> zipfile.ZipInfo:
    """The one file in a `.zip`; raise `InputError` where there are more, or it needs a password."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                one
                for one in archive.infolist()
                if not one.is_dir() and not re.search(r"(^|/)(__MACOSX/|\.)", one.filename)
            ]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be unpacked ({first_line(error)})") from None
    if len(members) != 1:
        raise InputError(
            f"{path}: holds {len(members)} files; one is needed: unpack it and name the files"
        )
    if members[0].flag_bits & 1:
        raise InputError(f"{path}: needs a password: unpack it first")
    return members[0]


@contextmanager
def open_plain(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed. Raises what the libraries below raise: `read_errors`."""
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(_only_member(path)) as inner:
            yield io.BufferedReader(cast(io.RawIOBase, inner), buffer_size=1 << 20)
        return
    with path.open("rb") as file:
        plain: BinaryIO = file
        if suffix in COMPRESSIONS:
            plain = pa.CompressedInputStream(pa.PythonFile(file), COMPRESSIONS[suffix])
        yield io.BufferedReader(cast(io.RawIOBase, plain), buffer_size=1 << 20)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """What a file that is cut, damaged or not what it says raises, as `InputError`."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowException, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(
            f"{path}: cannot be read to its end ({first_line(error)}); fetch or write it again"
        ) from None


def read_lines(path: Path, encoding: str = UTF8) -> Iterator[Line]:
    """The lines of a text file in UTF-8, without byte order mark and line ends, none empty.

    Raises what `open_plain` raises.
    """
    with open_plain(path) as stream:
        lines: io.BufferedReader | _Recoded = stream
        head = stream.peek(1)
        old_mac = encoding == UTF8 and b"\r" in head and b"\n" not in head  # no other line end
        if encoding != UTF8 or old_mac:
            ends = None if old_mac else "\n"
            lines = _Recoded(io.TextIOWrapper(stream, encoding, "danbooru_index", newline=ends))
        elif stream.peek(4).startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        number = 0
        while content := lines.readline(LONGEST_LINE):
            number += 1
            if len(content) >= LONGEST_LINE and not content.endswith(b"\n"):
                while (rest := lines.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield Line(number, None)
                continue
            content = content.rstrip(b"\r\n")
            if content.strip():
                yield Line(number, content)


@dataclass(frozen=True, slots=True)
class _Recoded:
    """Lines of another encoding, as UTF-8; undecodable bytes come as what no UTF-8 text holds."""

    text: io.TextIOWrapper

    def readline(self, limit: int) -> bytes:
        return (
            self.text.readline(limit).encode(errors="surrogatepass").removeprefix(codecs.BOM_UTF8)
        )


def first_lines(path: Path, encoding: str, count: int) -> list[Line]:
    """The first lines of a file; raise `InputError` where they cannot be read."""
    with read_errors(path):
        return list(islice(read_lines(path, encoding), count))
