"""The dense indices, Lance's and the codes beside the tables: they find what exact search finds; a
small table has none.
"""

from pathlib import Path

import lance
import numpy as np
import pytest
from vault import DIM, manifest, write_shard

from danbooru_index.config import Filter
from danbooru_index.index.completion import read_records
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import table_path
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.filters import allowed
from danbooru_index.search.retriever import Allowed, EncodedQuery


@pytest.mark.parametrize("beside", [True, False], ids=["by codes", "by Lance"])
def test_a_large_table_gets_an_index_that_finds_what_exact_search_finds(index, monkeypatch, beside):
    """Codes beside the tables, or Lance's IVF_RQ where no file can be mapped; over every row,
    durable and in the seal; small tables have none and are searched exactly.
    """
    from danbooru_index.index import vector_files, vector_index
    from danbooru_index.index.lifecycle import seal_and_publish
    from danbooru_index.pipeline.self_check import check_tables
    from danbooru_index.search import dense as dense_search

    shards = [f"s{number}" for number in range(8)]
    generation = index.start(manifest(shards))
    for number, shard in enumerate(shards):
        write_shard(
            generation,
            shard,
            200,
            number,
            categories=["rare" if n == 7 else "usual" for n in range(200)],
        )
    records = list(
        read_records(generation.path, shards, generation.manifest.fingerprint_digest).values()
    )
    monkeypatch.setattr(vector_index, "INDEX_ROWS", 1000)
    monkeypatch.setattr(vector_index, "ROWS_PER_PARTITION", 10)
    seal_and_publish(index, generation, records, [], check_tables)
    monkeypatch.setattr(dense_search, "FEW_ALLOWED", 4)
    monkeypatch.setattr(dense_search, "SCANNED", 200)
    if not beside:
        monkeypatch.setattr(vector_files.VectorFiles, "_has", lambda self, name: False)
    reader = GenerationReader(index.current())
    assert (reader.vectors.scan is not None) == beside
    dense, everything = DenseRetriever(reader), allowed(reader.files, Filter(nsfw=True))
    rare_ones = allowed(reader.files, Filter(("rare",), nsfw=True))
    as_query = lambda vector: EncodedQuery(vector, {}, np.zeros((0, DIM)))  # noqa: E731
    chance = np.random.default_rng(3)
    vectors = (
        lance.dataset(str(table_path(generation.path, "dense")))
        .to_table()["vector"]
        .combine_chunks()
    )
    vectors = vectors.flatten().to_numpy().reshape(-1, DIM).astype(np.float32)
    found = 0
    for _ in range(20):
        query = chance.normal(size=DIM).astype(np.float32)
        query /= np.linalg.norm(query)
        rows, scores = dense.candidates(as_query(query), 10, everything)
        assert np.allclose(scores, vectors[rows] @ query, atol=2e-3), (
            "scores are exact, whatever found them"
        )
        found += len(set(rows.tolist()) & set(np.argsort(-(vectors @ query))[:10].tolist()))
    assert found >= 190
    found = 0
    for _ in range(20 if beside else 0):  # Lance takes no mask
        query = chance.normal(size=DIM).astype(np.float32)
        scores = vectors @ query
        half = Allowed(chance.random(1600) < 0.5, Filter(nsfw=True))
        rows, _ = dense.candidates(as_query(query), 10, half)
        found += len(np.intersect1d(rows, np.argsort(-np.where(half.mask, scores, -9))[:10]))
        # None of the nearest rows is allowed: dropping them leaves nothing.
        far = Allowed(scores < np.median(scores), Filter(nsfw=True))
        rows, _ = dense.candidates(as_query(query), 10, far)
        assert far.mask[rows].all()
        assert len(rows) == 10
        assert scores[rows].min() > np.sort(scores[far.mask])[-100]
    assert found >= 190 or not beside
    # of 1,600 rows in 160 partitions, of which 80 are looked into
    rare = [f"s{number}-7" for number in range(8)]
    ids = (
        lance.dataset(str(table_path(generation.path, "dense")))
        .to_table(columns=["id"])["id"]
        .to_pylist()
    )
    for _ in range(5):
        rows, _ = dense.candidates(
            as_query(chance.normal(size=DIM).astype(np.float32)), 8, rare_ones
        )
        assert sorted(ids[row] for row in rows) == rare, (
            "a filter that leaves few rows leaves them all"
        )
    names = [name for name in index.current().manifest.seal.files if "/_indices/" in name]
    assert names
    path = Path(generation.path / names[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    from danbooru_index.index.status import verify

    assert any(names[0] in problem for problem in verify(str(index.path)).problems)


def test_a_small_table_has_no_index(built):
    from danbooru_index.index.vector_index import build_index, probes

    version = built.manifest.seal.versions["dense"]
    assert build_index(built.path, version, 30) == version
    assert probes(lance.dataset(str(table_path(built.path, "dense")))) == {"use_index": False}
