"""What unit tests of the index and of search share: an empty index, and three committed shards."""

import pytest
from vault import SPECS, committed, manifest, write_shard

from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.commit import commit
from danbooru_index.index.completion import read_records


@pytest.fixture
def index(tmp_path):
    root = IndexRoot(tmp_path / "index")
    root.create()
    return root


@pytest.fixture
def built(index):
    generation = index.start(manifest(["a", "b", "c"]))
    for number, shard in enumerate("abc"):
        write_shard(generation, shard, seed=number)
    records = list(
        read_records(
            generation.path, ["a", "b", "c"], generation.manifest.fingerprint_digest
        ).values()
    )
    generation = committed(generation, commit(generation.path, SPECS, records))
    return generation
