"""The index on a large generation's dense vectors: IVF_RQ, after the commit, before the seal.

Below `INDEX_ROWS` search is exact: fast enough, and nothing to build. A candidate found by the
index is scored exactly.
"""

from __future__ import annotations

from typing import Any

from danbooru_index.errors import StorageError, first_line
from danbooru_index.index.lance_errors import panics_as_errors
from danbooru_index.index.schema import table_path
from danbooru_index.storage.base import Storage

NAME = "dense_ivf_rq"
INDEX_ROWS = 1 << 18
ROWS_PER_PARTITION = 4096
# more, where a filter leaves too few rows in these
PROBES = {"minimum_nprobes": 80, "refine_factor": 10}


def build_index(generation: Storage, version: int, rows: int) -> int:
    """Index the dense table at this version if it is large; return the version readers open.

    Raises `StorageError` when it cannot be built, or does not cover every row.
    """
    if rows < INDEX_ROWS:
        return version
    from danbooru_index.index.commit import sync_manifests
    from danbooru_index.index.lance_io import open_table

    folder = table_path(generation, "dense")
    (folder / "_indices").remove_tree()  # of an attempt that was killed: this commit names none
    dataset = open_table(generation, "dense", version)
    try:
        with panics_as_errors():
            size = {"num_partitions": max(1, rows // ROWS_PER_PARTITION)}
            dataset.create_index("vector", "IVF_RQ", name=NAME, metric="cosine", **size)
            covered = dataset.stats.index_stats(NAME)
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"{folder}: the index cannot be built ({first_line(error)})") from None
    if (covered["num_indexed_rows"], covered["num_unindexed_rows"]) != (rows, 0):
        raise StorageError(
            f"{folder}: the index covers {covered['num_indexed_rows']:,} of {rows:,} rows"
        )
    # Lance syncs nothing: first these files, then the manifest that names them
    (folder / "_indices").sync_tree()
    sync_manifests(folder)
    return int(dataset.version)


def probes(dataset: Any) -> dict[str, Any]:
    """How a nearest-neighbour search reads this table: through its index, or all of it."""
    indexed = any(index.name == NAME for index in dataset.describe_indices())
    return dict(PROBES) if indexed else {"use_index": False}
