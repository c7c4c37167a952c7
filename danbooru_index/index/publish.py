"""Publishing: which generation readers open, replaced atomically, and the way back. Called by the owner of the index only."""

from __future__ import annotations

import contextlib
import time

from danbooru_index.errors import StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.storage.base import to_checked_json

SUPERSEDED = "superseded_at"  # a generation's file that says when it was replaced
REMEMBERED = 100  # publications, for `rollback`


def publish(root: IndexRoot, generation: Generation) -> None:
    """Make a sealed generation the one that readers open: one atomic replacement."""
    before = root.published_before()
    with contextlib.suppress(StorageError):
        before.append(root.current_id() or generation.id)
    _publish(root, generation, list(dict.fromkeys(name for name in before if name != generation.id)))


def _publish(root: IndexRoot, generation: Generation, before: list[str]) -> None:
    versions = generation.manifest.need_seal().versions
    with contextlib.suppress(StorageError):
        replaced = root.current()
        if replaced.id != generation.id:
            (replaced.path / SUPERSEDED).replace(str(time.time()).encode())
    reach("publish.superseded")
    body = {
        "generation": generation.id,
        "versions": versions,
        "published_at": time.time(),
        "before": before[-REMEMBERED:],
    }
    (root.path / "CURRENT.json").replace(to_checked_json(body))


def rollback(root: IndexRoot) -> Generation:
    """Publish what was published before the current generation, passing over damaged ones; raise `StorageError` where
    there is none."""
    root.require()
    known = {generation.id: generation for generation in root.generations() if generation.manifest.sealed}
    before, unreadable = root.published_before(), root.damaged()
    damaged = []
    while before:
        name = before.pop()
        if name in known and known[name].is_whole():
            _publish(root, known[name], before)
            return known[name]
        damaged += [name] if name in known or name in unreadable else []
    more = f" but {', '.join(damaged)}, which {'is' if len(damaged) == 1 else 'are'} damaged" if damaged else ""
    raise StorageError(f"{root.path}: there is no earlier generation to go back to{more}")
