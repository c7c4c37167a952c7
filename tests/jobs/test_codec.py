"""Projected ColBERT vectors: the fit, the measure of what it costs, and builds that store and
search them.
"""

import json
from dataclasses import asdict
from pathlib import Path

import lancedb
import numpy as np
import pytest

from danbooru_index.choices import Device, Precision
from danbooru_index.cli.entry import main
from danbooru_index.config import BuildConfig
from danbooru_index.errors import BuildFailedError, StorageError, UsageError
from danbooru_index.failpoints import Failpoint
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.codec import FULL, Codec, agreement, fit, load_codec
from danbooru_index.index.status import verify
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.pipeline.build import build
from danbooru_index.search.tag_index import TagIndex
from danbooru_index.storage.local import LocalStorage


def unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_vectors_of_a_small_space_survive_whole():
    chance = np.random.default_rng(0)
    vectors = unit(chance.normal(size=(500, 8)) @ chance.normal(size=(8, 64)))
    codec, energy = fit(vectors.T @ vectors, 8)
    assert codec.matrix.shape == (64, 8)
    assert energy == pytest.approx(1)
    assert np.allclose(codec.matrix.T @ codec.matrix, np.eye(8), atol=1e-5)
    projected = unit(vectors @ codec.matrix)
    assert np.allclose(projected @ projected.T, vectors @ vectors.T, atol=1e-5)


def test_the_same_sums_give_the_same_bytes_and_another_matrix_another_name():
    chance = np.random.default_rng(1)
    vectors = unit(chance.normal(size=(300, 32)))
    first, second = fit(vectors.T @ vectors, 16)[0], fit(vectors.T @ vectors, 16)[0]
    assert first.to_bytes() == second.to_bytes()
    assert first.name.startswith("svd-16-")
    assert fit(vectors[:299].T @ vectors[:299], 16)[0].name != first.name


def test_agreement_is_one_for_equal_rankings_and_near_chance_for_others():
    chance = np.random.default_rng(2)
    scores = chance.normal(size=(50, 1000))
    assert agreement(scores, scores * 3 + 1) == pytest.approx((1.0, 1.0))
    overlap, spearman = agreement(scores, chance.normal(size=scores.shape))
    assert overlap < 0.05
    assert abs(spearman) < 0.1
    tied = np.zeros((1, 30))
    assert agreement(tied, chance.normal(size=tied.shape))[0] == 1.0, (
        "all tie: any ten are the top ten"
    )


def test_a_damaged_projection_is_refused(tmp_path):
    codec = Codec(np.eye(8, 4, dtype=np.float32))
    path = tmp_path / "codec.npy"
    assert load_codec(LocalStorage(tmp_path), FULL) is None
    with pytest.raises(StorageError, match="cannot be read"):
        load_codec(LocalStorage(tmp_path), codec.name)
    path.write_bytes(codec.to_bytes())
    assert np.array_equal(load_codec(LocalStorage(tmp_path), codec.name).matrix, codec.matrix)
    content = bytearray(codec.to_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not the ColBERT projection"):
        load_codec(LocalStorage(tmp_path), codec.name)
    whole = codec.to_bytes()
    for bit in range(8 * 128):
        # of the header, which is Python's own syntax: some flips gave a TokenError
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(StorageError, match=r"codec\.npy"):
            load_codec(LocalStorage(tmp_path), codec.name)
    for broken in (b"", content[:50], content[:-5]):
        path.write_bytes(broken)
        with pytest.raises(StorageError, match=r"codec\.npy"):
            load_codec(LocalStorage(tmp_path), codec.name)


@pytest.fixture(scope="module")
def texts(sample):
    return [record["text"] for record in sample[:200]]


@pytest.mark.slow
def test_the_encoder_projects_as_numpy_does_and_scores_as_search_does(checkpoint, texts):

    batch = Tokenizer(str(checkpoint), 512)(texts)
    full = Encoder(str(checkpoint))
    encoding = full.encode(batch)
    moment = full.second_moment(batch)
    distinct = full.encode(Tokenizer(str(checkpoint), 512)(sorted(set(texts)))).colbert.astype(
        np.float64
    )
    assert np.allclose(moment, distinct.T @ distinct, atol=1e-2)
    codec, _ = fit(moment, 16)
    projected = Encoder(str(checkpoint), projection=codec.matrix).encode(batch)
    assert projected.colbert.shape[1] == 16
    assert np.allclose(projected.colbert, unit(encoding.colbert @ codec.matrix), atol=1e-5)
    assert np.array_equal(projected.dense, encoding.dense)
    in_numpy = codec.project(encoding.matrices)
    assert np.allclose(in_numpy.vectors, projected.colbert, atol=1e-5)
    assert np.allclose(
        max_sim(in_numpy, in_numpy), max_sim(projected.matrices, projected.matrices), atol=1e-4
    )


def config(shards, index, checkpoint, **options):
    options = {
        "device": Device.CPU,
        "precision": Precision.FP32,
        "colbert_dim": 32,
        "min_fidelity": 0.3,
    } | options
    return BuildConfig(str(shards), str(index), model=str(checkpoint), **options)


@pytest.mark.long
@pytest.mark.ray
def test_a_projected_build_resumes_with_its_projection_and_answers(
    ray_session, sample_shards, checkpoint, tmp_path
):
    index = tmp_path / "index"
    stop = Failpoint("build.encoded", action="error")
    with pytest.raises(StorageError):
        build(config(sample_shards, index, checkpoint, failpoints=(stop,)))
    begun = IndexRoot(index).generations()[-1]
    report = build(config(sample_shards, index, checkpoint))
    assert report.generation == begun.id
    assert report.shards.skipped == report.shards.total
    manifest = IndexRoot(index).current().manifest
    assert (manifest.dim, manifest.colbert_dim) == (64, 32)
    assert report.codec["name"] == manifest.fingerprint.codec
    assert 0.3 <= report.codec["overlap"] <= 1
    assert report.codec["queries"] >= 400
    assert "64 -> 32 values" in report.to_text()
    table = lancedb.connect(str(begun.path)).open_table("colbert").to_arrow()
    assert table.schema.field("vectors").type.value_type.list_size == 32
    with TagIndex.open(index) as tags:
        hits = tags.search("school uniform", mode="colbert", limit=400, nsfw=True)
        reference = Encoder(str(checkpoint), projection=begun.load_codec().matrix)
        query = reference.encode(Tokenizer(str(checkpoint), 512)(["school uniform"])).colbert_row(0)
        vectors = [
            np.array(matrix, np.float32).reshape(-1, 32) for matrix in table["vectors"].to_pylist()
        ]
        scores = max_sim(as_matrices([query]), as_matrices(vectors))[0]
        by_id = dict(zip(table["id"].to_pylist(), scores, strict=True))
        assert all(abs(hit.score - by_id[hit.id]) < 1e-3 for hit in hits)
        assert tags.search("school uniform", limit=5)
    assert build(config(sample_shards, index, checkpoint)).state.startswith("already published")
    assert verify(str(index)).problems == []

    path = Path(begun.path / "codec.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert any("codec.npy" in problem for problem in verify(str(index)).problems)


@pytest.mark.ray
def test_a_projection_that_costs_too_much_is_refused_and_says_so(
    ray_session, sample_shards, checkpoint, tmp_path
):
    with pytest.raises(BuildFailedError, match=r"below --min-fidelity 0\.99, nothing was built"):
        build(
            config(sample_shards, tmp_path / "index", checkpoint, colbert_dim=8, min_fidelity=0.99)
        )
    assert IndexRoot(tmp_path / "index").generations() == []
    with pytest.raises(UsageError, match="--colbert-dim 65"):
        build(config(sample_shards, tmp_path / "index", checkpoint, colbert_dim=65))


@pytest.mark.parametrize("words", [["--colbert-dim", "4"], ["--min-fidelity", "1.5"]])
def test_options_out_of_range_are_wrong_usage(words, tmp_path, capsys):
    assert main(["build", str(tmp_path), "--index", str(tmp_path / "i"), *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_what_the_report_says_of_a_codec_is_json(tmp_path):
    from danbooru_index.index.codec import Fidelity

    fidelity = Fidelity(128, 1024, 0.91, 0.97, 0.88, 1000, 4096, 4096)
    assert Fidelity(**json.loads(json.dumps(asdict(fidelity)))) == fidelity
