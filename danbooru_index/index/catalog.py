"""The generations of an index: which there are, which is published, and a new one.

INDEX/CURRENT.json                which generation, and the version of each table; replaced atomically, last
INDEX/generations/<id>/           a LanceDB database, `manifest.json` and the completion records
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from danbooru_index.errors import StorageError, UsageError, first_line
from danbooru_index.failpoints import reach
from danbooru_index.index.checks import damaged_files
from danbooru_index.index.codec import FILE as CODEC_FILE
from danbooru_index.index.codec import Codec, load_codec
from danbooru_index.index.completion import read_records
from danbooru_index.index.manifest import Manifest, read_manifest
from danbooru_index.storage.local import (
    entries,
    file_sizes,
    from_checked_json,
    make_folder,
    remove_temporary,
    remove_tree,
    replace_file,
    to_checked_json,
)
from danbooru_index.storage.s3 import Location, ObjectPath, location

GENERATION_ID = re.compile(r"g[0-9]{6,}-[0-9a-f]{8}")
GRACE_S = 900.0
SUPERSEDED = "superseded_at"
REMEMBERED = 100  # publications, for `rollback`


@dataclass(frozen=True, slots=True)
class Generation:
    """One build: its folder and its manifest."""

    path: Location
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    def load_codec(self) -> Codec | None:
        """How ColBERT vectors are stored here, None: in full. Raises `StorageError` where its file is not whole."""
        return load_codec(self.path, self.manifest.fingerprint["codec"])

    def is_sealed_by_now(self) -> bool:
        """Whether some process has finished this generation since it was read."""
        return read_manifest(self.path / "manifest.json").sealed

    def has_its_shards(self) -> bool:
        """Whether the data of every shard of a sealed generation is there, in size; `verify` rereads it."""
        manifest = self.manifest
        done = [shard for shard in manifest.shards if shard not in manifest.failed_shards]
        compacted = manifest.compacted_parts
        found = read_records(self.path, done, manifest.fingerprint_digest, sealed=True, compacted=compacted)
        return len(found) == len(done)

    def is_whole(self) -> bool:
        """Whether Lance's own files are also as they were."""
        return self.has_its_shards() and not damaged_files(self.path, self.manifest.files)

    def save(self) -> None:
        """Write the manifest, atomically; raise `ValueError` for one that could not be read back."""
        self.manifest.validate()
        replace_file(self.path / "manifest.json", to_checked_json(asdict(self.manifest)))


class IndexRoot:
    """The folder of an index. Everything that writes is called by its owner only (`durable.owned`)."""

    def __init__(self, path: str | Location) -> None:
        self.path = location(path)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: is a file; an index is a folder")

    def create(self) -> None:
        """Make the folder of the index; refuse one that holds other things."""
        if self.path.is_dir():
            known = {"CURRENT.json", "generations", ".owner.lock", ".owner.json", "input"}
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
        """All generations whose manifest can be read, oldest first."""
        return [found for found in self._found() if isinstance(found, Generation)]

    def damaged(self) -> dict[str, str]:
        """The other generations, by id, and what is wrong with each."""
        return dict(found for found in self._found() if not isinstance(found, Generation))

    def _found(self) -> Iterator[Generation | tuple[str, str]]:
        for path in entries(self.path / "generations"):
            # A name with a dot is a generation on its way to being deleted, by a process that was killed meanwhile.
            if not path.name.startswith(".") and (path / "manifest.json").is_file():
                try:
                    yield Generation(path, read_manifest(path / "manifest.json"))
                except StorageError as error:
                    yield path.name, str(error)

    def current_id(self) -> str | None:
        """The id of the published generation, None where nothing is published yet."""
        current = self._read_current()
        return None if current is None else current[0]

    def _read_current(self) -> tuple[str, list[str] | None] | None:
        """The published generation's id and those published before it, oldest first, where that is written down."""
        path = self.path / "CURRENT.json"
        try:
            body = from_checked_json(path.read_bytes())
            named, before = body["generation"], body.get("before")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(
                f"{path}: cannot be read ({first_line(error, 120)}); danbooru-index rollback repairs it"
            ) from None
        names = [named, *before] if isinstance(before, list) else [named]
        if not all(isinstance(name, str) and GENERATION_ID.fullmatch(name) for name in names):
            raise StorageError(f"{path}: names no generation; danbooru-index rollback repairs it")
        return named, before if isinstance(before, list) else None

    def _before(self) -> list[str]:
        """What was published before the current generation, oldest first; by their numbers where nobody wrote it down."""
        try:
            current = self._read_current()
        except StorageError:
            return [g.id for g in self.generations() if g.manifest.sealed]
        if current is None:
            return []
        named, before = current
        return [g.id for g in self.generations() if g.manifest.sealed and g.id < named] if before is None else before

    def current(self) -> Generation:
        """The published generation; raise `StorageError` where there is none."""
        self.require()
        generation_id = self.current_id()
        if generation_id is None:
            raise StorageError(f"{self.path}: nothing is published yet; run the build again to finish it")
        return self._named(generation_id)

    def _named(self, generation_id: str) -> Generation:
        path = self.path / "generations" / generation_id
        if not (path / "manifest.json").is_file():
            raise StorageError(
                f"{self.path}: generation {generation_id!r} is not there; danbooru-index rollback goes back"
            )
        return Generation(path, read_manifest(path / "manifest.json"))

    def start(self, manifest: Manifest, codec: Codec | None = None) -> Generation:
        """A new, unfinished generation; with its codec, which is there before it is."""
        names = [path.name.removeprefix(".trash-") for path in entries(self.path / "generations")]
        numbers = [int(name[1:].partition("-")[0]) for name in names if GENERATION_ID.fullmatch(name)]
        manifest.id = f"g{max(numbers, default=0) + 1:06d}-{manifest.fingerprint_digest[:8]}"
        manifest.created_at = time.time()
        generation = Generation(self.path / "generations" / manifest.id, manifest)
        make_folder(generation.path / "shards")
        if codec is not None:
            replace_file(generation.path / CODEC_FILE, codec.to_bytes())
        reach("generation.folder")
        generation.save()
        reach("generation.started")
        return generation

    def publish(self, generation: Generation) -> None:
        """Make a sealed generation the one that readers open: one atomic replacement."""
        before = self._before()
        with contextlib.suppress(StorageError):
            before.append(self.current_id() or generation.id)
        self._publish(generation, list(dict.fromkeys(name for name in before if name != generation.id)))

    def _publish(self, generation: Generation, before: list[str]) -> None:
        if not generation.manifest.sealed:
            raise StorageError(f"generation {generation.id} is not finished; run the build again")
        with contextlib.suppress(StorageError):
            replaced = self.current()
            if replaced.id != generation.id:
                replace_file(replaced.path / SUPERSEDED, str(time.time()).encode())
        reach("publish.superseded")
        body = {
            "generation": generation.id,
            "versions": generation.manifest.versions,
            "published_at": time.time(),
            "before": before[-REMEMBERED:],
        }
        replace_file(self.path / "CURRENT.json", to_checked_json(body))

    def rollback(self) -> Generation:
        """Publish what was published before the current generation, passing over damaged ones; raise `StorageError`
        where there is none."""
        self.require()
        known = {generation.id: generation for generation in self.generations() if generation.manifest.sealed}
        before, unreadable = self._before(), self.damaged()
        damaged = []
        while before:
            name = before.pop()
            if name in known and known[name].is_whole():
                self._publish(known[name], before)
                return known[name]
            damaged += [name] if name in known or name in unreadable else []
        more = f" but {', '.join(damaged)}, which {'is' if len(damaged) == 1 else 'are'} damaged" if damaged else ""
        raise StorageError(f"{self.path}: there is no earlier generation to go back to{more}")

    def prune(self, keep: int, grace_s: float = GRACE_S) -> list[str]:
        """Delete generations older than the last `keep` sealed ones, and unfinished ones that have a later one; never the
        published one, nor one that a reader may have opened less than `grace_s` seconds ago; return the ids deleted."""
        self.require()
        if keep < 1:
            raise UsageError(f"--keep must be at least 1, not {keep}")
        current = self.current_id()
        known = self.generations()
        sealed = [g for g in known if g.manifest.sealed]
        kept = {g.id for g in sealed[-keep:]} | {current}
        newest = known[-1].id if known else ""
        deleted = []
        self._clear_remains(newest)
        for generation in known:
            if generation.manifest.sealed:
                left_alone = time.time() - self._superseded_at(generation, sealed) < grace_s
                stale = generation.id not in kept and not left_alone
            else:
                stale = generation.id < newest  # the owner is here, so nobody is building it
            if stale:
                _delete(generation)
                deleted.append(generation.id)
        return deleted

    def _clear_remains(self, newest: str) -> None:
        """Delete what a killed `prune` or `build` left: trash, and generations without a manifest."""
        remove_temporary(self.path)
        for path in entries(self.path / "generations"):
            headless = GENERATION_ID.fullmatch(path.name) and path.name < newest
            if path.name.startswith(".trash-") or (headless and not (path / "manifest.json").is_file()):
                remove_tree(path)

    @staticmethod
    def _superseded_at(generation: Generation, sealed: list[Generation]) -> float:
        """When readers last could have opened a generation: when it was replaced, else when a later one was sealed."""
        with contextlib.suppress(OSError, ValueError):
            return float((generation.path / SUPERSEDED).read_text())
        later = [g.manifest.sealed_at for g in sealed if g.id > generation.id and g.manifest.sealed_at]
        return min(later, default=time.time())


def _delete(generation: Generation) -> None:
    """Delete a generation so that none is ever seen in part: first its name goes, or its manifest."""
    if isinstance(generation.path, ObjectPath):
        (generation.path / "manifest.json").unlink()
        reach("prune.renamed")
        remove_tree(generation.path)
        return
    trash = generation.path.with_name(f".trash-{generation.id}")
    generation.path.rename(trash)
    reach("prune.renamed")
    remove_tree(trash)


def done_shards(generation: Generation) -> int:
    """How many shards of a generation have a completion record."""
    return len(
        {f"{shard}.json" for shard in generation.manifest.shards} & file_sizes(generation.path / "shards").keys()
    )
