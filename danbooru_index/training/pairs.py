"""Training pairs from tag records: what people call a tag -> its text.

The format is FlagEmbedding's: `{"query": "...", "pos": ["..."], "neg": ["..."]}` a line. Queries
that are held out for evaluation never get in, whatever their spelling: compared after NFKC,
casefolding, and without spaces and underscores.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.parquet import KNOWN_FIELDS
from danbooru_index.ingest.readers import JSON_SUFFIXES
from danbooru_index.ingest.sources import list_inputs
from danbooru_index.ingest.text_encoding import text_lines
from danbooru_index.ingest.understanding import read_dump
from danbooru_index.records import Record

log = logging.getLogger(__name__)

# of a training
PAIRS, ASIDE, LOG, FAILURE, FINAL = (
    "pairs.jsonl",
    "aside.jsonl",
    "log.jsonl",
    "failure.json",
    "final",
)

PAIR_FORM = '{"query": "...", "pos": ["..."], "neg": ["..."]}'
BETWEEN_NAMES = re.compile(r"[。，、；（）()/,;|\n]")


@dataclass(slots=True)
class Pair:
    """A query, the texts that answer it, and texts that do not."""

    query: str
    pos: list[str]
    neg: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def normal(text: str) -> str:
    """The form in which held-out queries are compared."""
    return "".join(
        c for c in unicodedata.normalize("NFKC", text).casefold() if not c.isspace() and c != "_"
    )


def bare(text: str) -> str:
    """A record's text without its explanation."""
    return text.partition(" - ")[0]


def read_training_data(
    path: str, names: Mapping[str, Sequence[str]], held_out: Iterable[str]
) -> list[Pair]:
    """The pairs of a pairs file, or those made from a tag dump; held-out queries left out.

    A file whose first line has `query` and `pos` is a pairs file. Raises `InputError` for what
    cannot be read.
    """
    forbidden = {normal(query) for query in held_out}
    pairs: list[Pair] = []
    rejected: Counter[str] = Counter()
    first = ""
    dumps = 0
    for file in list_inputs((path,)):
        if is_pairs_file(file):
            pairs += [pair for pair in _read_pairs(file) if normal(pair.query) not in forbidden]
            continue
        dumps += 1
        records: list[Record] = []
        for line, item in read_dump(file):
            if isinstance(item, Record):
                records.append(item)
            else:
                rejected[item.reason.value] += 1
                first = first or f"{file}:{line} {item.reason.value} {item.detail}".rstrip()
        pairs += make_pairs(records, names, forbidden)
    if names and not dumps:
        raise InputError(
            f"{path}: a file of pairs, to which --names add nothing: leave them out, or give a tag"
            " dump"
        )
    if not pairs or rejected.total() > len(pairs):
        found = (
            f"{rejected.total():,} of its lines cannot be read; the first: {first}"
            if rejected
            else "none in it"
        )
        raise InputError(
            f"{path}: no pair to train on, {PAIR_FORM} a line or tag records with names: {found}"
        )
    if rejected:
        log.warning(f"{path}: {rejected.total():,} lines left out; the first: {first}")
    return pairs


def is_pairs_file(path: Path) -> bool:
    """Whether the first line of a file is a training pair."""
    if not any(suffix.lower() in JSON_SUFFIXES for suffix in path.suffixes):
        return False
    try:
        _, first = next(text_lines(path), (0, ""))
        item = json.loads(first)
    except (InputError, ValueError, RecursionError):
        # what cannot be read is for the records' reader to say
        return False
    return isinstance(item, dict) and "query" in item and "pos" in item


def make_pairs(
    records: Iterable[Record], names: Mapping[str, Sequence[str]], forbidden: Iterable[str]
) -> Iterator[Pair]:
    """The pairs of each record: its tag's words, aliases, explanation and its parts, and `names`.

    An explanation's answer is the text without it: a name is to be learned from its tag, not from a
    copy of itself. `forbidden`: queries in their normal form that are left out.
    """
    left_out = set(forbidden)
    for record in records:
        short = bare(record.text)
        explanation = record.text[len(short) + 3 :]
        parts = [part.strip() for part in BETWEEN_NAMES.split(explanation)]
        explained = {explanation, *(part for part in parts if len(part) > 1)}
        seen = set(left_out)
        asked = [
            record.tag.replace("_", " "),
            *record.aliases,
            *sorted(explained),
            *names.get(record.tag, ()),
        ]
        for query in asked:
            key = normal(query)
            if key and key not in seen:
                seen.add(key)
                texts = [short] if query in explained else [record.text, short]
                yield Pair(query, list(dict.fromkeys(texts)))


def _read_pairs(path: Path) -> Iterator[Pair]:
    """A pairs file; raise `InputError` that names the line for one that is no pair."""
    for number, line in text_lines(path):
        try:
            item = json.loads(line)
            pair = Pair(item["query"], item["pos"], item.get("neg") or [])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path}:{number}: needs {PAIR_FORM}") from None
        lists = isinstance(pair.pos, list) and isinstance(pair.neg, list) and bool(pair.pos)
        if not lists or not all(
            isinstance(text, str) and text.strip() for text in [pair.query, *pair.pos, *pair.neg]
        ):
            raise InputError(
                f"{path}:{number}: query must be a text, pos a list of at least one, neg a list"
            )
        if not set(pair.pos).isdisjoint(pair.neg):
            raise InputError(f"{path}:{number}: a text is both right (pos) and wrong (neg)")
        yield pair


def read_names(paths: Sequence[str]) -> dict[str, list[str]]:
    """Further names of tags: JSON lines like `{"tag": "...", "ja": "..."}`, also .gz."""
    names: dict[str, list[str]] = {}
    for path in paths:
        for number, line in text_lines(Path(path)):
            try:
                item = json.loads(line)
                tag = item.pop("tag")
                fields = {name: value for name, value in item.items() if name not in KNOWN_FIELDS}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f'{path}:{number}: needs {{"tag": "...", "ja": "..."}}') from None
            if not isinstance(tag, str):
                raise InputError(f"{path}:{number}: tag is {tag!r}, not a text")
            found = names.setdefault(tag, [])
            for value in fields.values():
                found += [
                    name
                    for name in (value if isinstance(value, list) else [value])
                    if isinstance(name, str)
                ]
    return names


def check_held_out(pairs: Iterable[Pair], held_out: Iterable[str]) -> None:
    """Raise `InputError` if a held-out query is among the pairs: the last look before training."""
    forbidden = {normal(query) for query in held_out}
    for pair in pairs:
        if normal(pair.query) in forbidden:
            raise InputError(f"the held-out query {pair.query!r} is among the training pairs")
