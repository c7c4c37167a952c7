"""The encoding of a text file: as asked, by its byte order mark, or UTF-8.

A file in another one is refused, with the likely one named; so is what is no text of tags at all.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from danbooru_index.encodings import likely_encoding
from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.text_file import UTF8, open_plain, read_errors, read_lines
from danbooru_index.records import RejectedError

SAMPLE_BYTES = 1 << 20
FOREIGN_LINES = 0.5  # share of the lines beyond ASCII that are not UTF-8: the file is not
MOSTLY_COMMON = 0.5  # share of common characters from which on an encoding is taken for it
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's: it begins like it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHER_FORMATS = {
    b"version https://git-lfs": "a pointer of git-lfs, not the file: git lfs pull brings it",
    b"<!doctype": "a web page, not a dump; fetch the file itself",
    b"<html": "a web page, not a dump; fetch the file itself",
    b"<?xml": "XML, which is not read; ask the site for JSON",
    b"<tags": "XML, which is not read; ask the site for JSON",
    b"404: not found": "an error page, not a dump; fetch the file again",
    b"%pdf": "a PDF, not a dump",
    b"pk\x03\x04": "a zip or a workbook by another name: name it .zip or .xlsx",
    b"\x1f\x8b": "a gzip file by another name: name it .gz",
    b"(\xb5/\xfd": "a zstd file by another name: name it .zst",
    b"sqlite format 3": "a SQLite database by another name: name it .sqlite",
    b"par1": "a Parquet file by another name: name it .parquet",
}


def checked_encoding(name: str) -> str:
    """The encoding that a user named; raise `UsageError` where Python has none of that name."""
    try:
        known = codecs.lookup(name.strip())
        b"a\0a\0a\0a\0".decode(known.name, "danbooru_index")
    except (LookupError, ValueError, TypeError):
        raise UsageError(
            f"--encoding {name!r}: no such encoding; gb18030, big5, cp932, euc_jp, utf-16 are some"
        ) from None
    return known.name


def detect_encoding(path: Path, asked: str | None) -> str:
    """The encoding of a text file: `asked`, or by its byte order mark, or UTF-8.

    Raises `InputError`, which names the likely one, where that is plainly not UTF-8.
    """
    with read_errors(path), open_plain(path) as stream:
        sample = stream.read(SAMPLE_BYTES)
    _refuse_other_formats(path, sample)
    for mark, encoding in BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    if asked is not None:
        name = checked_encoding(asked)
        if name in ("utf-16", "utf-32"):
            raise InputError(
                f"{path}: has no byte order mark of {name}; leave --encoding out, or say {name}-le"
            )
        # one encoding is said for several files: what is plainly UTF-8 stays so
        whole = sample if len(sample) < SAMPLE_BYTES else sample[: sample.rfind(b"\n")]
        return UTF8 if not whole.isascii() and _is_utf8(whole) else name
    likely = _other_than_utf8(sample)
    if likely is not None:
        known = f", likely {likely}; add --encoding {likely}"
        raise InputError(
            f"{path}: not UTF-8{known if likely else '; say its encoding by --encoding'}"
        )
    return UTF8


def _refuse_other_formats(path: Path, sample: bytes) -> None:
    """Raise `InputError` for a file that is no text of tags, whatever its name says."""
    start = sample[:2000].lstrip().lower()
    for mark, what in OTHER_FORMATS.items():
        if start.startswith(mark):
            raise InputError(f"{path}: {what}")


def _other_than_utf8(sample: bytes) -> str | None:
    """The likely encoding of bytes that are plainly not UTF-8, empty if unknown; None: they are."""
    if b"\0" in sample[:1000]:
        zeros = [sample[start:1000:2].count(0) for start in (0, 1)]
        if max(zeros) > len(sample[:1000]) / 8:
            return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    if b"\x1b$B" in sample or b"\x1b$@" in sample:
        return "iso2022_jp"
    lines = sample.splitlines()[:-1] if len(sample) == SAMPLE_BYTES else sample.splitlines()
    beyond = [line for line in lines if not line.isascii()]
    foreign = [line for line in beyond if not _is_utf8(line)]
    if len(foreign) < 2 or len(foreign) <= FOREIGN_LINES * len(beyond):
        return None
    content = b"\n".join(foreign[:2000])
    if common := likely_encoding(content, MOSTLY_COMMON):
        return common
    from charset_normalizer import from_bytes

    best = from_bytes(content).best()  # of any other script
    return best.encoding if best else ""


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number and text of each line of a text file, also .gz and .zst, but for empty ones; raise
    `InputError` for one that cannot be read.
    """
    encoding = detect_encoding(path, None)
    try:
        with read_errors(path):
            for line in read_lines(path, encoding):
                yield line.number, line.decode()
    except RejectedError as error:
        raise InputError(f"{path}: cannot be read ({error.detail})") from None
