"""A generation's manifest: what it was made of and by; completed when it is sealed.

In memory a manifest never changes: sealing makes another one. In JSON it is one flat document, the
same in every version of this program; `from_json` checks every field, since a document may be
damaged, of another version, or made to do harm. The whole document is here, so that what may
stand in it can be read in one place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from danbooru_index.errors import StorageError, first_line
from danbooru_index.index.codec import FULL, Fidelity
from danbooru_index.index.completion import SHARD_NAME, TablePart
from danbooru_index.index.schema import (
    LANCE_STORAGE_VERSION,
    SCHEMA_VERSION,
    TABLES,
    TableSpec,
    table_specs,
)
from danbooru_index.storage.base import Storage, from_checked_json

TABLE_FILE = re.compile(r"(dense|sparse|colbert)\.lance/_[a-z]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
SEARCH_FILE = re.compile(r"search-[0-9]+/[a-z_]+\.(npy|f16)")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must not be mixed in a generation."""

    model_id: str
    precision: str
    max_length: int
    codec: str = FULL
    schema: int = SCHEMA_VERSION
    lance: str = LANCE_STORAGE_VERSION

    @property
    def digest(self) -> str:
        """32 hex digits over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model that made a generation: its name, the folder that it was in, its id."""

    name: str
    path: str
    id: str

    @property
    def place(self) -> str:
        """Where the model was on the machine that built the index, if it is here; else its name."""
        return self.path if Path(self.path).is_dir() else self.name


@dataclass(frozen=True, slots=True)
class Checks:
    """What was checked before a generation was sealed: the rows of each table, the checks passed,
    samples that found themselves.
    """

    counts: dict[str, int] = field(default_factory=dict)
    passed: tuple[str, ...] = ()
    self_queries: int | None = None

    def to_json(self) -> dict[str, Any]:
        if not self.passed:
            return {}
        own = {} if self.self_queries is None else {"self_queries": self.self_queries}
        return {"counts": self.counts, "passed": list(self.passed), **own}

    @classmethod
    def from_json(cls, found: Any) -> Self:
        values = _as_mapping(found)
        counts = _mapped(_as_count, values.get("counts", {}))
        return cls(counts, _as_names(values.get("passed", [])), values.get("self_queries"))


@dataclass(frozen=True, slots=True)
class Seal:
    """What a generation gets when it is finished: `versions` of its tables, `files`: the checksum
    of each of Lance's own files, `compacted`: what compacted tables consist of, instead of what the
    completion records name; `search_files`: the checksum of each array beside the tables.
    """

    sealed_at: float
    versions: dict[str, int]
    records: int
    rejected: dict[str, int] = field(default_factory=dict)
    failed_shards: tuple[str, ...] = ()
    checks: Checks = field(default_factory=Checks)
    files: dict[str, str] = field(default_factory=dict)
    compacted: dict[str, TablePart] = field(default_factory=dict)
    search_files: dict[str, str] = field(default_factory=dict)

    @property
    def checksums(self) -> dict[str, str]:
        """The checksums of all files but those of the tables' data, by path in the generation."""
        return self.files | self.search_files

    def to_json(self) -> dict[str, Any]:
        parts = {name: asdict(part) for name, part in self.compacted.items()}
        own = {
            "failed_shards": list(self.failed_shards),
            "checks": self.checks.to_json(),
            "compacted": parts,
        }
        return {f.name: getattr(self, f.name) for f in fields(self)} | own

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        versions = _mapped(_as_count, found["versions"])
        parts = {
            str(name): TablePart(**part)
            for name, part in _as_mapping(found.get("compacted", {})).items()
        }
        files: dict[str, str] = _mapped(_as_text, found.get("files", {}))
        for part in parts.values():
            part.validate()
        if versions.keys() != set(TABLES) or not parts.keys() <= set(TABLES):
            raise ValueError("names other tables than a generation has")
        arrays: dict[str, str] = _mapped(_as_text, found.get("search_files", {}))
        if not all(TABLE_FILE.fullmatch(name) for name in files):
            raise ValueError("names a file that is not in a table")
        if not all(SEARCH_FILE.fullmatch(name) for name in arrays):
            raise ValueError("names a file that no search reads")
        return cls(
            sealed_at=float(found["sealed_at"]),
            versions=versions,
            records=_as_count(found["records"]),
            rejected=_mapped(_as_count, found.get("rejected", {})),
            failed_shards=_as_shards(found.get("failed_shards", [])),
            checks=Checks.from_json(found.get("checks", {})),
            files=files,
            compacted=parts,
            search_files=arrays,
        )


UNSEALED: dict[str, Any] = {
    "sealed_at": None, "versions": {}, "records": 0, "rejected": {}, "failed_shards": [],
    "checks": {}, "files": {}, "compacted": {}, "search_files": {},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a generation is. `seal` None: unfinished; `fidelity`: what its ColBERT projection costs,
    where it has one; `input`, `input_digest`: how the user named the input, and what was in it;
    `nsfw_marks`: how the input says what is not safe for work, empty where that was not noted.
    """

    id: str
    fingerprint: Fingerprint
    fingerprint_digest: str
    model: ModelRef
    dim: int
    colbert_dim: int
    input_digest: str
    shards: tuple[str, ...]
    input: str
    query_instruction: str = ""
    created_at: float = 0.0
    seal: Seal | None = None
    fidelity: Fidelity | None = None
    nsfw_marks: str = ""

    @property
    def specs(self) -> tuple[TableSpec, ...]:
        return table_specs(self.dim, self.colbert_dim)

    @property
    def sealed(self) -> bool:
        return self.seal is not None

    @property
    def compacted(self) -> dict[str, TablePart]:
        """What compacted tables consist of; none before the seal."""
        return self.seal.compacted if self.seal else {}

    @property
    def codec(self) -> dict[str, Any]:
        """What a projection costs, as reports say it; nothing for vectors in full."""
        return asdict(self.fidelity) if self.fidelity else {}

    def need_seal(self) -> Seal:
        """The seal; raise `StorageError` for a generation that is not finished."""
        if self.seal is None:
            raise StorageError(f"generation {self.id} is not finished; run the build again")
        return self.seal

    def to_json(self) -> dict[str, Any]:
        """The document, its fields in the order that they have always had."""
        seal = UNSEALED if self.seal is None else self.seal.to_json()
        known = asdict(self) | {"shards": list(self.shards)} | seal | {"codec": self.codec}
        order = (
            *(f.name for f in fields(self) if f.name not in ("seal", "fidelity", "nsfw_marks")),
            *(name for name in UNSEALED if name not in ("compacted", "search_files")),
        )
        # Fields that earlier versions had not are written only where they say something.
        noted = [name for name in ("nsfw_marks", "search_files") if known[name]]
        return {name: known[name] for name in (*order, "codec", "compacted", *noted)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Parse and check; raise `ValueError`, `TypeError` or `KeyError` for no manifest."""
        known = {f.name for f in fields(cls)} | UNSEALED.keys() | {"codec"}
        if strangers := found.keys() - known:
            raise ValueError(
                f"its fields are not those of a manifest ({', '.join(sorted(strangers))})"
            )
        fingerprint = _as_dataclass(Fingerprint, found["fingerprint"])
        _as_count(fingerprint.max_length)
        sealed = found.get("sealed_at") is not None
        return cls(
            id=_as_text(found["id"]),
            fingerprint=fingerprint,
            fingerprint_digest=_as_text(found["fingerprint_digest"]),
            model=_as_dataclass(ModelRef, found["model"]),
            dim=_as_count(found["dim"]),
            colbert_dim=_as_count(found["colbert_dim"]),
            input_digest=_as_text(found["input_digest"]),
            shards=_as_shards(found["shards"]),
            input=_as_text(found["input"]),
            query_instruction=_as_text(found.get("query_instruction", "")),
            created_at=float(found.get("created_at", 0.0)),
            seal=Seal.from_json(found) if sealed else None,
            fidelity=Fidelity(**found["codec"]) if found.get("codec") else None,
            nsfw_marks=_as_text(found.get("nsfw_marks", "")),
        )


def _as_dataclass(kind: type[T], found: Any) -> T:
    """A dataclass of plain values; raise for a field missing, unknown or of another type."""
    made = kind(**_as_mapping(found))
    for f in fields(kind):  # type: ignore[arg-type]
        if f.type == "str":
            _as_text(getattr(made, f.name))
    return made


def _as_mapping(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("a field is no object")
    return found


def _mapped(parse: Callable[[Any], T], found: Any) -> dict[str, T]:
    return {name: parse(value) for name, value in _as_mapping(found).items()}


def _as_text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError("a field is no text")
    return found


def _as_count(found: Any) -> int:
    if type(found) is not int or not 0 <= found < 1 << 62:
        raise ValueError("a field is no count")
    return found


def _as_names(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise ValueError("a field is no list")
    return tuple(_as_text(name) for name in found)


def _as_shards(found: Any) -> tuple[str, ...]:
    """Names of shards; none that could leave the generation's folder."""
    names = _as_names(found)
    if not all(SHARD_NAME.fullmatch(name) for name in names):
        raise ValueError("names no shard")
    return names


def describe_difference(old: Manifest, wanted: Manifest) -> str:
    """Why a build cannot go on with, or equal, the generation of `old`: what differs, in words."""
    changes = []
    for name in Fingerprint.__slots__:
        before, value = getattr(old.fingerprint, name), getattr(wanted.fingerprint, name)
        if before != value:
            shown = (str(before)[:12], str(value)[:12])
            changes.append(f"{name.replace('_', ' ')} ({shown[0]} -> {shown[1]})")
    if old.input_digest != wanted.input_digest:
        added, removed = (
            len(set(wanted.shards) - set(old.shards)),
            len(set(old.shards) - set(wanted.shards)),
        )
        changes.append(
            f"input ({added} shards new, {removed} gone)"
            if added or removed
            else "input (order or duplicates)"
        )
    if old.query_instruction != wanted.query_instruction:
        changes.append("the query instruction")
    return ", ".join(changes)


def read_manifest(path: Storage) -> Manifest:
    """The manifest in a file; raise `StorageError` for one that is damaged."""
    try:
        return Manifest.from_json(from_checked_json(path.read()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path}: cannot be read ({first_line(error, 120)}); restore it, or delete this"
            " generation"
        ) from None
