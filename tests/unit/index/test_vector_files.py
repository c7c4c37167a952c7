"""Vectors beside the tables: the same values, read without Lance; what is damaged is said."""

import numpy as np
import pytest
import vault

from danbooru_index.embeddings import to_float32
from danbooru_index.errors import StorageError
from danbooru_index.index import vector_files, vector_index
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.dense_scan import DenseScan
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.vector_files import VectorFiles


@pytest.fixture
def generation(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "INDEX_ROWS", 40)
    vault.build(tmp_path / "index", vault.shard_names(3), 20)
    return IndexRoot(tmp_path / "index").current()


def unit(chance, *shape):
    vectors = chance.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_every_finite_half_float_is_widened_exactly():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    as_bits = lambda values: values.view(np.uint32).tolist()  # noqa: E731
    assert as_bits(to_float32(halves)) == as_bits(halves.astype(np.float32))
    table = halves.reshape(-1, 8)[::3]
    assert as_bits(to_float32(table)) == as_bits(table.astype(np.float32))
    assert to_float32(np.empty((0, 4), np.float16)).shape == (0, 4)


def test_the_files_hold_what_the_tables_hold(generation, monkeypatch):
    reader, rows = GenerationReader(generation), np.array([7, 3, 59, 3, 0])
    dense, colbert = reader.dense_vectors(rows), reader.colbert_matrices(rows)
    assert reader.vectors.dense is not None
    monkeypatch.setattr(VectorFiles, "_has", lambda self, name: False)
    tables = GenerationReader(generation)
    assert tables.vectors.dense is None
    assert (tables.dense_vectors(rows) == dense).all()
    from_table = tables.colbert_matrices(rows)
    assert (from_table.vectors == colbert.vectors).all()
    assert from_table.lengths.tolist() == colbert.lengths.tolist()


def test_wide_colbert_vectors_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_files, "COPIED_WIDTH", vault.DIM - 1)
    vault.build(tmp_path / "index", vault.shard_names(2), 20)
    generation = IndexRoot(tmp_path / "index").current()
    reader = GenerationReader(generation)
    assert reader.vectors.colbert_matrices(np.array([1])) is None
    assert len(reader.colbert_matrices(np.array([1])).lengths) == 1
    assert not (generation.path / "search-2" / "colbert.f16").exists()


@pytest.mark.parametrize("name", ["dense.f16", "colbert.f16", "dense_scan.npy"])
def test_a_damaged_file_is_named(generation, name):
    path = (generation.path / "search-2" / name).local_path()
    path.write_bytes(path.read_bytes()[:-2])
    files = VectorFiles(generation)
    with pytest.raises(StorageError, match=f"{name}.*danbooru-index verify"):
        _ = files.dense_vectors(np.array([1])), files.colbert_matrices(np.array([1])), files.scan


def test_a_flipped_bit_in_the_codes_is_found_before_they_are_used(generation):
    path = (generation.path / "search-2" / "dense_scan.npy").local_path()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not as it was written"):
        _ = VectorFiles(generation).scan


def test_the_scan_finds_what_is_near_among_any_share_of_rows():
    chance = np.random.default_rng(0)
    centres = unit(chance, 50, 64)
    vectors = unit(chance, 6000, 64) * 0.7 + centres[chance.integers(0, 50, 6000)]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    scan = DenseScan.from_array(DenseScan.build(vectors).to_array())
    assert scan.rows == 6000
    for share in (1.0, 0.5, 0.1, 0.02):
        mask = chance.random(6000) < share
        bits = None if share == 1 else np.packbits(mask, bitorder="little")
        found = wanted = 0
        for query in vectors[:40].astype(np.float32):
            rows = scan.nearest(query, 300, bits)
            assert len(set(rows.tolist())) == len(rows) == min(300, mask.sum())
            assert mask[rows].all()
            best = np.argsort(-np.where(mask, vectors.astype(np.float32) @ query, -9))[:10]
            found, wanted = found + len(np.intersect1d(rows, best)), wanted + 10
        assert found >= 0.98 * wanted
    with pytest.raises(ValueError, match="not an index of faiss"):
        DenseScan.from_array(np.arange(50, dtype=np.uint8))
