"""The commit: each table becomes exactly the fragments of the completion records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Mapping

from danbooru_index.errors import StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index.completion import CompletionRecord, TablePart, records_folder
from danbooru_index.index.lance_io import FragmentMetadata, lance, lance_reason, panics_as_errors
from danbooru_index.index.schema import TableSpec, table_path
from danbooru_index.storage.base import Storage, remove_temporary

COMMIT_TRIES = 20


def commit(
    generation: Storage, specs: tuple[TableSpec, ...], records: list[CompletionRecord]
) -> dict[str, int]:
    """Make each table exactly the fragments of `records`, in their order; return the version of
    each.

    An overwrite with a read version is a compare-and-swap, and repeating it changes nothing.
    """
    return {spec.name: commit_table(generation, spec, records) for spec in specs}


def commit_table(generation: Storage, spec: TableSpec, records: list[CompletionRecord]) -> int:
    """`commit` of one table."""
    folder = table_path(generation, spec.name)
    fragments = [
        FragmentMetadata.from_json(json.dumps(fragment))
        for record in records
        for fragment in record.tables[spec.name].fragments
    ]
    problem: Exception | None = None
    for _ in range(COMMIT_TRIES):
        try:
            with panics_as_errors():
                dataset = lance.LanceDataset.commit(
                    str(folder),
                    lance.LanceOperation.Overwrite(spec.schema, fragments),
                    read_version=_latest_version(folder, spec),
                    max_retries=0,
                    storage_options=folder.lance_options(),
                )
        except (OSError, ValueError) as error:
            problem = error
            continue
        reach("commit.unsynced")
        sync_manifests(folder)
        reach("commit.table")
        return int(dataset.version)
    raise StorageError(f"{folder}: the commit did not go through ({lance_reason(problem)})")


def _latest_version(folder: Storage, spec: TableSpec) -> int:
    """The version of a table, 0 for none. What a power loss left of versions (cut short, or zeros,
    which Lance opens as a table without columns) is deleted: nobody reads a generation that is not
    sealed, and the commit makes its tables anew from the completion records.
    """
    if not any(path.name.endswith(".manifest") for path in (folder / "_versions").entries()):
        return 0
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        dataset = lance.dataset(str(folder), storage_options=folder.lance_options())
        if dataset.schema.names == spec.schema.names:
            return int(dataset.version)
    for name in ("_versions", "_transactions"):
        (folder / name).remove_tree()
    return 0


def sync_manifests(folder: Storage) -> None:
    """Make the versions of a table durable; an object store has nothing to sync."""
    for name in ("_versions", "_transactions"):
        (folder / name).sync_tree()
    folder.sync()


def sweep_orphans(
    generation: Storage,
    specs: tuple[TableSpec, ...],
    records: list[CompletionRecord],
    compacted: Mapping[str, TablePart] | None = None,
) -> int:
    """Delete the data files of killed attempts: those that neither a record nor a compaction names,
    and only they; return how many. Also what counted those attempts, and what they wrote of a file
    that never got its name.
    """
    swept = 0
    for path in generation.entries():
        if path.name.startswith("attempts-"):
            path.remove_tree()
    remove_temporary(generation)
    remove_temporary(records_folder(generation))
    compacted = compacted or {}
    for spec in specs:
        parts = [record.tables[spec.name] for record in records]
        named = {
            name for part in (*parts, compacted.get(spec.name, TablePart())) for name in part.sizes
        }
        swept += keep_only(table_path(generation, spec.name), named)
    return swept


def keep_only(folder: Storage, named: Container[str]) -> int:
    """Delete the data files of a table that are not `named`; return how many."""
    swept = 0
    for path in (folder / "data").entries():
        if path.name.endswith(".lance") and path.name not in named:
            path.delete()
            swept += 1
    return swept
