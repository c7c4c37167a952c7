"""Publishing, rolling back and pruning: `CURRENT.json` is replaced atomically."""

from __future__ import annotations

import contextlib
import time

from danbooru_index.errors import StorageError, UsageError
from danbooru_index.failpoints import reach
from danbooru_index.index.catalog import GENERATION_ID, Generation, IndexRoot
from danbooru_index.storage.base import remove_temporary, to_checked_json

GRACE_S = 900.0

SUPERSEDED = "superseded_at"  # a generation's file that says when it was replaced
REMEMBERED = 100  # publications, for `rollback`


def publish(root: IndexRoot, generation: Generation) -> None:
    """Make a sealed generation the one that readers open: one atomic replacement."""
    before = root.published_before()
    with contextlib.suppress(StorageError):
        before.append(root.current_id() or generation.id)
    _publish(
        root, generation, list(dict.fromkeys(name for name in before if name != generation.id))
    )


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
    """Publish the generation before the current one, damaged ones left out. `StorageError`."""
    root.require()
    known = {
        generation.id: generation for generation in root.generations() if generation.manifest.sealed
    }
    before, unreadable = root.published_before(), root.damaged()
    damaged = []
    while before:
        name = before.pop()
        if name in known and known[name].is_whole():
            _publish(root, known[name], before)
            return known[name]
        damaged += [name] if name in known or name in unreadable else []
    more = (
        f" but {', '.join(damaged)}, which {'is' if len(damaged) == 1 else 'are'} damaged"
        if damaged
        else ""
    )
    raise StorageError(f"{root.path}: there is no earlier generation to go back to{more}")


def prune(root: IndexRoot, keep: int, grace_s: float = GRACE_S) -> list[str]:
    """Delete generations older than the last `keep` published ones, and those that have a later one
    and are unfinished or were never published; never the one that is published now, nor one that a
    reader may have opened less than `grace_s` seconds ago; return the ids deleted.
    """
    root.require()
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, not {keep}")
    current = root.current_id()
    known = root.generations()
    before = {current, *root.published_before()}
    # what a guard kept back is no generation to go back to
    sealed = [
        g for g in known if g.manifest.sealed and (g.id in before or (g.path / SUPERSEDED).exists())
    ]
    published = {g.id for g in sealed}
    kept = {g.id for g in sealed[-keep:]} | {current}
    newest = known[-1].id if known else ""
    deleted = []
    _clear_remains(root, newest)
    for generation in known:
        if generation.id in published:
            left_alone = time.time() - _superseded_at(generation, sealed) < grace_s
            stale = generation.id not in kept and not left_alone
        else:
            stale = generation.id < newest  # the owner is here, so nobody is building it
        if stale:
            _delete(generation)
            deleted.append(generation.id)
    return deleted


def _clear_remains(root: IndexRoot, newest: str) -> None:
    """Delete what a killed `prune` or `build` left: trash, and generations without a manifest."""
    remove_temporary(root.path)
    for path in (root.path / "generations").entries():
        headless = GENERATION_ID.fullmatch(path.name) and path.name < newest
        if path.name.startswith(".trash-") or (headless and not (path / "manifest.json").exists()):
            path.remove_tree()


def _superseded_at(generation: Generation, sealed: list[Generation]) -> float:
    """When readers last could have opened a generation: when another replaced it."""
    with contextlib.suppress(OSError, ValueError):
        return float((generation.path / SUPERSEDED).read())
    later = [g.manifest.need_seal().sealed_at for g in sealed if g.id > generation.id]
    return min(later, default=time.time())


def _delete(generation: Generation) -> None:
    """Delete a generation so that none is ever seen in part: its name or manifest goes first."""
    hidden = generation.path.hide("manifest.json")
    reach("prune.renamed")
    hidden.remove_tree()
