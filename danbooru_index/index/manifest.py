"""The manifest of a generation: what it was made of and by, written when it begins, completed when it is sealed."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from danbooru_index.errors import StorageError, first_line
from danbooru_index.index.codec import FULL
from danbooru_index.index.completion import SHARD_NAME, TablePart
from danbooru_index.index.lance_io import LANCE_STORAGE_VERSION
from danbooru_index.index.schema import SCHEMA_VERSION, TABLES, TableSpec, table_specs
from danbooru_index.storage.local import from_checked_json
from danbooru_index.storage.s3 import Location

TABLE_FILE = re.compile(r"(dense|sparse|colbert)\.lance/_[a-z]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")


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


@dataclass(slots=True)
class Manifest:
    """What a generation is: written when it begins, completed when it is sealed."""

    id: str
    fingerprint: dict[str, Any]
    fingerprint_digest: str
    model: dict[str, Any]
    dim: int
    colbert_dim: int
    input_digest: str
    shards: list[str]
    input: str
    query_instruction: str = ""
    created_at: float = 0.0
    sealed_at: float | None = None
    versions: dict[str, int] = field(default_factory=dict)
    records: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed_shards: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    compacted: dict[str, dict[str, Any]] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise `ValueError` where a field is of another type, or a name could leave the generation's folder."""
        texts = (self.id, self.fingerprint_digest, self.input_digest, self.input, self.query_instruction)
        numbers = (self.dim, self.colbert_dim, self.records, *self.versions.values())
        names = [*self.shards, *self.failed_shards]
        right = (
            all(isinstance(text, str) for text in texts)
            and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
            and all(isinstance(name, str) and SHARD_NAME.fullmatch(name) for name in names)
            and all(isinstance(self.model.get(name), str) for name in ("name", "path", "id"))
            and isinstance(self.fingerprint.get("max_length"), int)
            and all(isinstance(self.fingerprint.get(name), str) for name in ("precision", "codec"))
            and (self.sealed_at is None or set(self.versions) == set(TABLES))
            and all(TABLE_FILE.fullmatch(name) for name in self.files)
            and set(self.compacted) <= set(TABLES)
        )
        for part in self.compacted_parts.values():
            part.validate()
        if not right:
            raise ValueError("its fields are not those of a manifest")

    @property
    def specs(self) -> tuple[TableSpec, ...]:
        return table_specs(self.dim, self.colbert_dim)

    @property
    def compacted_parts(self) -> dict[str, TablePart]:
        """What the tables that were compacted consist of, instead of what the completion records name."""
        return {name: TablePart(**part) for name, part in self.compacted.items()}

    @property
    def sealed(self) -> bool:
        return self.sealed_at is not None


def describe_difference(old: Manifest, wanted: Manifest) -> str:
    """Why a build cannot go on with, or equal, the generation of `old`: what differs, in words."""
    changes = []
    for name, value in wanted.fingerprint.items():
        before = old.fingerprint.get(name)
        if before != value:
            shown = (str(before)[:12], str(value)[:12])
            changes.append(f"{name.replace('_', ' ')} ({shown[0]} -> {shown[1]})")
    if old.input_digest != wanted.input_digest:
        added, removed = len(set(wanted.shards) - set(old.shards)), len(set(old.shards) - set(wanted.shards))
        changes.append(
            f"input ({added} shards new, {removed} gone)" if added or removed else "input (order or duplicates)"
        )
    if old.query_instruction != wanted.query_instruction:
        changes.append("the query instruction")
    return ", ".join(changes)


def read_manifest(path: Location) -> Manifest:
    """The manifest in a file; raise `StorageError` for one that is damaged."""
    try:
        manifest = Manifest(**from_checked_json(path.read_bytes()))
        manifest.validate()
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path}: cannot be read ({first_line(error, 120)}); restore it, or delete this generation"
        ) from None
