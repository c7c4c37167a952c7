"""What a generation gets beside its tables before it is sealed: the arrays that a search reads."""

from __future__ import annotations

from collections.abc import Mapping

from danbooru_index.index.arrays import FOLDER
from danbooru_index.index.catalog import Generation
from danbooru_index.index.checks import folder_checksums
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.search_files import write_search_files
from danbooru_index.index.vector_files import write_vector_files
from danbooru_index.machine import cpu_count

SPREAD_ROWS = 40_000  # from which more than one process reads names
MOST_PROCESSES = 16


def derive(generation: Generation, versions: Mapping[str, int]) -> dict[str, str]:
    """Make the arrays from the tables at these versions; return their checksums by path."""
    reader = GenerationReader(generation, versions)
    workers = min(cpu_count(), MOST_PROCESSES) if reader.rows >= SPREAD_ROWS else 1
    records, sparse = reader.record_batches(), reader.sparse_batches()
    write_search_files(generation.path, records, sparse, workers)
    write_vector_files(
        generation.path,
        reader.dense_halves(),
        generation.manifest.dim,
        reader.colbert_blocks(),
        generation.manifest.colbert_dim,
    )
    return folder_checksums(generation.path, FOLDER)
