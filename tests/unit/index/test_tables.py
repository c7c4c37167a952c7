"""The three tables: schemas, commits, and what `verify` reads again; real Lance throughout."""

import random

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from vault import DIM, SPECS, make_encoding, verify_all

from danbooru_index.index.commit import commit
from danbooru_index.index.completion import read_records
from danbooru_index.index.schema import table_path, table_specs


def test_schemas_are_the_contract():
    dense, sparse, colbert = (spec.schema for spec in table_specs(1024, 128))
    assert dense.names == [
        "id", "shard", "tag", "category", "text", "source", "post_count", "aliases", "nsfw", "deprecated", "vector",
    ]  # fmt: skip
    assert dense.field("vector").type == pa.list_(pa.float16(), 1024)
    assert dense.field("post_count").type == pa.int64()
    assert dense.field("aliases").type == pa.list_(pa.string())
    assert sparse.field("token_ids").type == pa.list_(pa.int32())
    assert sparse.field("weights").type == pa.list_(pa.float32())
    assert colbert.field("vectors").type == pa.list_(pa.list_(pa.float16(), 128))


def test_what_is_written_is_what_lancedb_reads(built):
    database = lancedb.connect(str(built.path))
    encodings = [make_encoding(20, seed) for seed in range(3)]
    for name in ("dense", "sparse", "colbert"):
        table = database.open_table(name).to_arrow()
        assert table.num_rows == 60
        assert table["id"].to_pylist()[20] == "b-0"
        assert set(table["shard"].to_pylist()) == {"a", "b", "c"}
    vectors = (
        database.open_table("dense")
        .to_arrow()["vector"]
        .combine_chunks()
        .flatten()
        .to_numpy()
        .reshape(60, DIM)
    )
    assert np.array_equal(vectors, np.concatenate([e.dense for e in encodings]))
    matrices = database.open_table("colbert").to_arrow()["vectors"].combine_chunks()
    assert np.array_equal(
        matrices.flatten().flatten().to_numpy().reshape(-1, DIM),
        np.concatenate([e.colbert for e in encodings]),
    )
    weights = database.open_table("sparse").to_arrow()
    assert weights["weights"].combine_chunks().flatten().to_numpy().tolist() == [
        w for e in encodings for w in e.sparse_weights.tolist()
    ]


def test_repeating_a_commit_changes_nothing(built):
    records = list(
        read_records(built.path, ["a", "b", "c"], built.manifest.fingerprint_digest).values()
    )
    before = lance.dataset(str(table_path(built.path, "dense"))).to_table()
    for _ in range(5):
        commit(built.path, SPECS, records)
    assert lance.dataset(str(table_path(built.path, "dense"))).to_table() == before


@pytest.mark.parametrize("name", ["dense", "sparse", "colbert"])
@pytest.mark.parametrize("flip", range(5))
def test_verify_notices_a_flipped_bit_and_names_the_file(built, name, flip):
    records = list(
        read_records(built.path, ["a", "b", "c"], built.manifest.fingerprint_digest).values()
    )
    assert verify_all(built, records) == []
    path = sorted((table_path(built.path, name).local_path() / "data").glob("*.lance"))[0]
    content = bytearray(path.read_bytes())
    chance = random.Random(f"{name}{flip}")
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    problems = verify_all(built, records)
    assert len(problems) == 1
    assert path.name in problems[0]
