"""Compaction: many small fragments made few, the rows to the bit as they were, at whatever moment a
process dies.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pytest
from faults import compare, contents
from vault import DIM, build, shard_names

from danbooru_index.choices import Device
from danbooru_index.config import BuildConfig, Filter
from danbooru_index.index import compaction
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.compaction import verify_compacted
from danbooru_index.index.completion import read_records
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.status import verify
from danbooru_index.pipeline.build import build as build_index
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.filters import allowed
from danbooru_index.search.retriever import EncodedQuery

NAMES = shard_names(6)
VAULT = Path(__file__).parents[1] / "support" / "vault.py"


def fragments(index):
    path = IndexRoot(index).current().path.local_path()
    return {
        name: len(lance.dataset(f"{path}/{name}.lance").get_fragments())
        for name in ("dense", "sparse", "colbert")
    }


def files(index, table):
    return sorted(
        path.name
        for path in (IndexRoot(index).current().path.local_path() / f"{table}.lance" / "data").glob(
            "*"
        )
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Six shards of 20 rows, not compacted."""
    path = tmp_path_factory.mktemp("plain") / "index"
    build(path, NAMES)
    return path


@pytest.mark.long
@pytest.mark.ray
def test_a_build_compacts_says_so_and_what_would_be_faster(
    tmp_path, sample_shards, checkpoint, ray_session, monkeypatch
):
    monkeypatch.setattr(compaction, "FRAGMENTS", 4)
    config = BuildConfig(
        str(sample_shards), str(tmp_path / "index"), model=str(checkpoint), device=Device.CPU
    )
    report = build_index(config)
    assert fragments(tmp_path / "index") == {"dense": 1, "sparse": 1, "colbert": 8}
    assert report.seconds.compact > 0
    assert report.to_dict()["seconds"]["compact"] == pytest.approx(report.seconds.compact, abs=0.01)
    notes = "\n".join(report.notes)
    assert "table dense: 8 small fragments compacted into 1" in notes
    assert f"danbooru-index prepare {sample_shards} --out FOLDER makes larger ones" in notes
    assert verify(str(tmp_path / "index")).problems == []
    again = build_index(config)
    assert (again.state, again.shards.skipped) == ("already published: nothing to do", 8)


@pytest.fixture
def compacted(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "FRAGMENTS", 4)
    path = tmp_path / "index"
    build(path, NAMES)
    return path


def vault(index, *options):
    command = [
        sys.executable,
        VAULT,
        index,
        "--shards",
        str(len(NAMES)),
        "--fragments",
        "4",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_small_fragments_become_one_and_hold_the_same(plain, compacted):
    assert fragments(plain) == {"dense": 6, "sparse": 6, "colbert": 12}
    assert fragments(compacted) == {"dense": 1, "sparse": 1, "colbert": 12}
    assert compare(compacted, contents(plain)) == []
    assert len(files(compacted, "dense")) == len(files(compacted, "sparse")) == 1, (
        "the shards' own files are gone"
    )
    assert len(files(compacted, "colbert")) == 12
    query = EncodedQuery(np.random.default_rng(1).normal(size=DIM), {}, np.zeros((0, DIM)))
    readers = [GenerationReader(IndexRoot(index).current()) for index in (compacted, plain)]
    (rows, scores), (other, expected) = (
        DenseRetriever(reader).candidates(query, 50, allowed(reader.files, Filter(nsfw=True)))
        for reader in readers
    )
    assert rows.tolist() == other.tolist(), "rows are numbered as before"
    assert np.allclose(scores, expected, atol=1e-6)


def test_a_compacted_generation_is_finished(compacted):
    before = contents(compacted)
    assert build(compacted, NAMES) == IndexRoot(compacted).current().id
    assert compare(compacted, before) == []


@pytest.mark.parametrize("limits", [{"FRAGMENTS": 7}, {"FRAGMENTS": 4, "SMALL_ROWS": 20}])
def test_few_fragments_and_large_ones_stay(limits, tmp_path, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(compaction, name, value)
    build(tmp_path / "index", NAMES)
    assert fragments(tmp_path / "index") == {"dense": 6, "sparse": 6, "colbert": 12}


def test_one_flipped_bit_in_a_compacted_file_is_found(compacted):
    generation = IndexRoot(compacted).current()
    path = Path(generation.path / "sparse.lance" / "data" / files(compacted, "sparse")[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    assert any(path.name in problem for problem in verify(str(compacted)).problems)


def test_content_is_compared_shard_by_shard(compacted):
    generation = IndexRoot(compacted).current()
    parts = generation.manifest.compacted
    found = read_records(
        generation.path, NAMES, generation.manifest.fingerprint_digest, sealed=True, compacted=parts
    )
    records = [found[name] for name in NAMES]
    spec = generation.manifest.specs[0]
    version = generation.manifest.seal.versions["dense"]
    assert verify_compacted(generation, spec, version, parts["dense"], records) == []
    records[1], records[2] = records[2], records[1]
    problems = verify_compacted(generation, spec, version, parts["dense"], records)
    assert len(problems) == 2
    assert "differs from its digest" in problems[0]
    assert verify_compacted(generation, spec, version, parts["dense"], records[3:])[0].startswith(
        "dense: 120 rows"
    )


def test_a_lost_compacted_file_makes_the_next_build_anew(plain, compacted):
    first = IndexRoot(compacted).current().id
    path = (
        IndexRoot(compacted).current().path.local_path()
        / "dense.lance"
        / "data"
        / files(compacted, "dense")[0]
    )
    path.unlink()
    assert verify(str(compacted)).problems
    assert build(compacted, NAMES) != first
    assert compare(compacted, contents(plain)) == []


@pytest.mark.parametrize(
    "point",
    [
        "compact.unsynced",
        "build.compacted",
        "build.indexed",
        "build.before_publish",
        "build.after_publish",
    ],
)
def test_killed_there_the_next_run_ends_the_same(plain, point, tmp_path):
    index, token = tmp_path / "index", tmp_path / "token"
    first = vault(index, "--failpoint", f"{point}:kill:{token}:0")
    assert first.returncode == -signal.SIGKILL
    assert vault(index).returncode == 0
    assert fragments(index) == {"dense": 1, "sparse": 1, "colbert": 12}
    assert compare(index, contents(plain)) == []
    assert len(files(index, "dense")) == 1, (
        "nothing of the shards, or of the killed attempt, is left"
    )
    assert len(IndexRoot(index).generations()) == 1


def test_where_it_cannot_be_written_the_table_stays_as_it_was(plain, tmp_path):
    """A limit on a file's size that the shards' files keep and the compacted one does not."""
    index = tmp_path / "index"
    sizes = IndexRoot(plain).current().path.sizes()
    largest = max(size for name, size in sizes.items() if ".lance/" in name)
    done = vault(index, "--compaction-limit", str(largest + 200))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["generation"] == IndexRoot(index).current().id
    assert fragments(index)["dense"] == 6
    assert compare(index, contents(plain)) == []
    assert len(files(index, "dense")) == 6
