"""Reading a generation: rows are numbered as in the input, alike in the three tables."""

import numpy as np
import pyarrow.compute as pc
import pytest
from vault import SPECS, committed, manifest, write_shard

from danbooru_index.index.commit import commit
from danbooru_index.index.completion import read_records
from danbooru_index.index.reader import GenerationReader


@pytest.fixture
def reader(built):
    return GenerationReader(built)


def test_rows_are_the_inputs_in_each_table(reader):
    assert reader.counts() == dict.fromkeys(("dense", "sparse", "colbert"), reader.rows)
    assert reader.id_problems() == []
    rows = np.array([reader.rows - 1, 0, 1])
    found = reader.files.records(rows.tolist())
    assert [reader.row_of(record["id"]) for record in found] == rows.tolist()
    assert [record["tag"] for record in found] == [reader.tags()[row] for row in rows]
    assert [record["text"] for record in found] == [reader.texts()[row] for row in rows]
    assert reader.row_of("no such id") is None


def test_blocks_are_the_whole_table_in_row_order(reader):
    every = np.arange(reader.rows)
    assert np.array_equal(np.concatenate(list(reader.dense_blocks())), reader.dense_vectors(every))
    matrices = reader.colbert_matrices(every)
    blocks = list(reader.colbert_blocks())
    assert np.array_equal(np.concatenate([block.vectors for block in blocks]), matrices.vectors)
    assert np.concatenate([block.lengths for block in blocks]).tolist() == matrices.lengths.tolist()
    lengths = [len(row) for batch in reader.sparse_batches() for row in batch["weights"]]
    assert len(lengths) == reader.rows


def test_the_nearest_rows_are_those_of_highest_cosine_that_a_filter_lets_through(reader):
    vectors = reader.dense_vectors(np.arange(reader.rows))
    assert reader.nearest(vectors[3], 1, None).tolist() == [3]
    nsfw = reader.files.nsfw
    allowed = reader.nearest(vectors[3], reader.rows, pc.field("nsfw") == pc.scalar(bool(nsfw[0])))
    assert sorted(allowed.tolist()) == np.flatnonzero(nsfw == nsfw[0]).tolist()
    scores = vectors[allowed] @ vectors[3]
    assert (np.diff(scores) <= 1e-3).all()


def test_an_id_in_two_shards_is_a_problem(index):
    generation = index.start(manifest(["a", "b"]))
    for shard in "ab":
        write_shard(generation, shard, prefix="same-")
    digest = generation.manifest.fingerprint_digest
    records = list(read_records(generation.path, ["a", "b"], digest).values())
    generation = committed(generation, commit(generation.path, SPECS, records))
    assert GenerationReader(generation).id_problems() == ["20 ids occur twice"]
