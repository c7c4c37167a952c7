"""The generations of an index: which there are, which is published, and a new one.

INDEX/CURRENT.json                which generation, and the version of each table; replaced
atomically, last INDEX/generations/<id>/           a LanceDB database, `manifest.json` and the
completion records
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from danbooru_index.errors import StorageError, UsageError, first_line
from danbooru_index.failpoints import reach
from danbooru_index.index.codec import FILE as CODEC_FILE
from danbooru_index.index.codec import Codec, load_codec
from danbooru_index.index.completion import read_records, records_folder
from danbooru_index.index.manifest import Manifest, read_manifest
from danbooru_index.storage.base import Storage, from_checked_json, to_checked_json
from danbooru_index.storage.locate import locate

GENERATION_ID = re.compile(r"g[0-9]{6,}-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Generation:
    """One build: its folder and its manifest."""

    path: Storage
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    def load_codec(self) -> Codec | None:
        """This generation's projection, None: vectors in full. Raises `StorageError`."""
        return load_codec(self.path, self.manifest.fingerprint.codec)

    def is_sealed_by_now(self) -> bool:
        """Whether some process has finished this generation since it was read."""
        return read_manifest(self.path / "manifest.json").sealed

    def has_its_shards(self) -> bool:
        """Whether all data files of a sealed generation have their size; `verify` rereads them."""
        manifest = self.manifest
        seal = manifest.need_seal()
        done = [shard for shard in manifest.shards if shard not in seal.failed_shards]
        found = read_records(
            self.path, done, manifest.fingerprint_digest, sealed=True, compacted=seal.compacted
        )
        return len(found) == len(done)

    def is_whole(self) -> bool:
        """Whether Lance's own files are also as they were."""
        from danbooru_index.index.checks import damaged_files  # imports Lance: 0.8 s

        return self.has_its_shards() and not damaged_files(
            self.path, self.manifest.need_seal().checksums
        )

    def save(self) -> None:
        """Write the manifest, atomically; raise `ValueError` for one that cannot be read back."""
        document = self.manifest.to_json()
        Manifest.from_json(document)
        (self.path / "manifest.json").replace(to_checked_json(document))


# called with a sealed generation before it is published; raises where it must not be
Guard = Callable[[Generation], None]


class IndexRoot:
    """The folder of an index. Only its owner (`Storage.owned`) calls what writes."""

    def __init__(self, path: str | Path | Storage) -> None:
        self.path = locate(path)
        if self.path.exists():
            raise UsageError(f"{self.path}: is a file; an index is a folder")

    def create(self) -> None:
        """Make the folder of the index; refuse one that holds other things."""
        known = {"CURRENT.json", "generations", ".owner.lock", ".owner.json", "input", "history"}
        strangers = [
            p.name
            for p in self.path.entries()
            if p.name not in known and not p.name.endswith(".tmp")
        ]
        if strangers and not (self.path / "generations").is_folder():
            raise UsageError(
                f"{self.path}: not empty ({strangers[0]}, ...) and not an index; choose another"
                " folder"
            )
        (self.path / "generations").make_folder()

    def require(self) -> None:
        """Raise `StorageError` unless this is an index."""
        if not (self.path / "generations").is_folder():
            raise StorageError(
                f"{self.path}: no index here; make one with danbooru-index build SHARDS --index"
                f" {self.path}"
            )

    def generations(self) -> list[Generation]:
        """All generations whose manifest can be read, oldest first."""
        return [found for found in self._found() if isinstance(found, Generation)]

    def damaged(self) -> dict[str, str]:
        """The other generations, by id, and what is wrong with each."""
        return dict(found for found in self._found() if not isinstance(found, Generation))

    def _found(self) -> Iterator[Generation | tuple[str, str]]:
        for path in (self.path / "generations").entries():
            # A name with a dot is a generation on its way to being deleted, by a process that was
            # killed meanwhile.
            if not path.name.startswith(".") and (path / "manifest.json").exists():
                try:
                    yield Generation(path, read_manifest(path / "manifest.json"))
                except StorageError as error:
                    yield path.name, str(error)

    def current_id(self) -> str | None:
        """The id of the published generation, None where nothing is published yet."""
        current = self._read_current()
        return None if current is None else current[0]

    def _read_current(self) -> tuple[str, list[str] | None] | None:
        """The published generation's id, and those published before it, oldest first."""
        path = self.path / "CURRENT.json"
        try:
            body = from_checked_json(path.read())
            named, before = body["generation"], body.get("before")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(
                f"{path}: cannot be read ({first_line(error, 120)}); danbooru-index rollback"
                " repairs it"
            ) from None
        names = [named, *before] if isinstance(before, list) else [named]
        if not all(isinstance(name, str) and GENERATION_ID.fullmatch(name) for name in names):
            raise StorageError(f"{path}: names no generation; danbooru-index rollback repairs it")
        return named, before if isinstance(before, list) else None

    def published_before(self) -> list[str]:
        """What was published before, oldest first; by number where that was not recorded."""
        try:
            current = self._read_current()
        except StorageError:
            return [g.id for g in self.generations() if g.manifest.sealed]
        if current is None:
            return []
        named, before = current
        return (
            [g.id for g in self.generations() if g.manifest.sealed and g.id < named]
            if before is None
            else before
        )

    def current(self) -> Generation:
        """The published generation; raise `StorageError` where there is none."""
        self.require()
        generation_id = self.current_id()
        if generation_id is None:
            raise StorageError(
                f"{self.path}: nothing is published yet; run the build again to finish it"
            )
        return self._named(generation_id)

    def _named(self, generation_id: str) -> Generation:
        path = self.path / "generations" / generation_id
        if not (path / "manifest.json").exists():
            raise StorageError(
                f"{self.path}: generation {generation_id!r} is not there; danbooru-index rollback"
                " goes back"
            )
        return Generation(path, read_manifest(path / "manifest.json"))

    def start(self, manifest: Manifest, codec: Codec | None = None) -> Generation:
        """A new, unfinished generation; with its codec, which is there before it is."""
        names = [
            path.name.removeprefix(".trash-") for path in (self.path / "generations").entries()
        ]
        numbers = [
            int(name[1:].partition("-")[0]) for name in names if GENERATION_ID.fullmatch(name)
        ]
        name = f"g{max(numbers, default=0) + 1:06d}-{manifest.fingerprint_digest[:8]}"
        manifest = replace(manifest, id=name, created_at=time.time())
        generation = Generation(self.path / "generations" / manifest.id, manifest)
        records_folder(generation.path).make_folder()
        if codec is not None:
            (generation.path / CODEC_FILE).replace(codec.to_bytes())
        reach("generation.folder")
        generation.save()
        reach("generation.started")
        return generation


def done_shards(generation: Generation) -> int:
    """How many shards of a generation have a completion record."""
    return len(
        {f"{shard}.json" for shard in generation.manifest.shards}
        & records_folder(generation.path).sizes().keys()
    )
