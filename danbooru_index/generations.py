"""Generations: new, resume, publish, roll back, prune. Readers open the one that `CURRENT.json` names.

INDEX/CURRENT.json                which generation, and the version of each table; replaced atomically, last
INDEX/generations/<id>/           a LanceDB database, `manifest.json` and the completion records
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from danbooru_index.durable import make_folder, replace_file
from danbooru_index.errors import StorageError, UsageError
from danbooru_index.packing import SCHEMA_VERSION, TableSpec, table_specs
from danbooru_index.tables import LANCE_STORAGE_VERSION, record_path

GRACE_S = 900.0
SUPERSEDED = "superseded_at"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must not be mixed in a generation."""

    model_id: str
    precision: str
    max_length: int
    codec: str = "full"
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

    @property
    def specs(self) -> tuple[TableSpec, ...]:
        return table_specs(self.dim, self.colbert_dim)

    @property
    def sealed(self) -> bool:
        return self.sealed_at is not None


@dataclass(frozen=True, slots=True)
class Generation:
    """One build: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    def save(self) -> None:
        """Write the manifest, atomically."""
        content = json.dumps(asdict(self.manifest), ensure_ascii=False, indent=1)
        replace_file(self.path / "manifest.json", content.encode())


class IndexRoot:
    """The folder of an index. Everything that writes is called by its owner only (`durable.owned`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: is a file; an index is a folder")

    def create(self) -> None:
        """Make the folder of the index; refuse one that holds other things."""
        if self.path.is_dir():
            known = {"CURRENT.json", "generations", ".owner.lock", "input"}
            strangers = sorted(p.name for p in self.path.iterdir() if p.name not in known and p.suffix != ".tmp")
            if strangers and not (self.path / "generations").is_dir():
                raise UsageError(
                    f"{self.path}: not empty ({strangers[0]}, ...) and not an index; choose another folder"
                )
        make_folder(self.path / "generations")

    def require(self) -> None:
        """Raise `StorageError` unless this is an index."""
        if not (self.path / "generations").is_dir():
            raise StorageError(
                f"{self.path}: no index here; make one with danbooru-index build SHARDS --index {self.path}"
            )

    def generations(self) -> list[Generation]:
        """All generations, oldest first."""
        found = []
        folder = self.path / "generations"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            # A name with a dot is a generation on its way to being deleted, by a process that was killed meanwhile.
            if not path.name.startswith(".") and (path / "manifest.json").is_file():
                found.append(Generation(path, _read_manifest(path / "manifest.json")))
        return found

    def current_id(self) -> str | None:
        """The id of the published generation, None where nothing is published yet."""
        path = self.path / "CURRENT.json"
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["generation"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{path}: cannot be read ({type(error).__name__}); danbooru-index rollback repairs it"
            ) from None

    def current(self) -> Generation:
        """The published generation; raise `StorageError` where there is none."""
        self.require()
        generation_id = self.current_id()
        if generation_id is None:
            raise StorageError(f"{self.path}: nothing is published yet; run the build again to finish it")
        return self._named(generation_id)

    def _named(self, generation_id: str) -> Generation:
        path = self.path / "generations" / generation_id
        if "/" in generation_id or ".." in generation_id or not (path / "manifest.json").is_file():
            raise StorageError(
                f"{self.path}: generation {generation_id!r} is not there; danbooru-index rollback goes back"
            )
        return Generation(path, _read_manifest(path / "manifest.json"))

    def start(self, manifest: Manifest) -> Generation:
        """A new, unfinished generation."""
        numbers = [int(g.id[1:7]) for g in self.generations() if g.id[1:7].isdigit()]
        manifest.id = f"g{max(numbers, default=0) + 1:06d}-{manifest.fingerprint_digest[:8]}"
        manifest.created_at = time.time()
        generation = Generation(self.path / "generations" / manifest.id, manifest)
        make_folder(generation.path / "shards")
        generation.save()
        return generation

    def publish(self, generation: Generation) -> None:
        """Make a sealed generation the one that readers open: one atomic replacement."""
        if not generation.manifest.sealed:
            raise StorageError(f"generation {generation.id} is not finished; run the build again")
        with contextlib.suppress(StorageError):
            before = self.current()
            if before.id != generation.id:
                replace_file(before.path / SUPERSEDED, str(time.time()).encode())
        body = {
            "generation": generation.id,
            "versions": generation.manifest.versions,
            "published_at": time.time(),
        }
        replace_file(self.path / "CURRENT.json", json.dumps(body, indent=1).encode())

    def rollback(self) -> Generation:
        """Publish the sealed generation before the current one; raise `StorageError` where there is none."""
        self.require()
        try:
            current = self.current_id()
        except StorageError:
            current = None
        before = [g for g in self.generations() if g.manifest.sealed and (current is None or g.id < current)]
        if not before:
            raise StorageError(f"{self.path}: there is no earlier generation to go back to")
        self.publish(before[-1])
        return before[-1]

    def prune(self, keep: int, grace_s: float = GRACE_S) -> list[str]:
        """Delete generations older than the last `keep` sealed ones; never the published one, nor one that a reader
        may have opened less than `grace_s` seconds ago; return the ids deleted."""
        self.require()
        if keep < 1:
            raise UsageError(f"--keep must be at least 1, not {keep}")
        current = self.current_id()
        sealed = [g for g in self.generations() if g.manifest.sealed]
        kept = {g.id for g in sealed[-keep:]} | {current}
        newest = sealed[-1].id if sealed else ""
        deleted = []
        for trash in (self.path / "generations").glob(".trash-*"):
            shutil.rmtree(trash, ignore_errors=True)
        for generation in self.generations():
            stale = generation.id < newest if not generation.manifest.sealed else generation.id not in kept
            if stale and time.time() - self._superseded_at(generation, sealed) >= grace_s:
                trash = generation.path.with_name(f".trash-{generation.id}")
                generation.path.rename(trash)
                shutil.rmtree(trash, ignore_errors=True)
                deleted.append(generation.id)
        return deleted

    @staticmethod
    def _superseded_at(generation: Generation, sealed: list[Generation]) -> float:
        """When readers last could have opened a generation: when it was replaced, else when a later one was sealed."""
        with contextlib.suppress(OSError, ValueError):
            return float((generation.path / SUPERSEDED).read_text())
        later = [g.manifest.sealed_at for g in sealed if g.id > generation.id and g.manifest.sealed_at]
        return min(later, default=time.time())


def done_shards(generation: Generation) -> int:
    """How many shards of a generation have a completion record."""
    return sum(record_path(generation.path, shard).exists() for shard in generation.manifest.shards)


def describe_difference(old: Manifest, fingerprint: Fingerprint, input_digest: str, shards: list[str]) -> str:
    """Why a build cannot go on with, or equal, the generation of `old`: what differs, in words."""
    changes = []
    for name, value in asdict(fingerprint).items():
        before = old.fingerprint.get(name)
        if before != value:
            shown = (str(before)[:12], str(value)[:12])
            changes.append(f"{name.replace('_', ' ')} ({shown[0]} -> {shown[1]})")
    if old.input_digest != input_digest:
        added, removed = len(set(shards) - set(old.shards)), len(set(old.shards) - set(shards))
        changes.append(
            f"input ({added} shards new, {removed} gone)" if added or removed else "input (order or duplicates)"
        )
    return ", ".join(changes)


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path}: cannot be read ({str(error)[:120]}); restore it, or delete this generation"
        ) from None
