"""What happens only above a size, or with another spelling of a path, from the command line: a
small input, lowered thresholds.

`tests/support/lowered` lowers them in every process, the workers of Ray too.
"""

import json
import os
import shutil
from pathlib import Path

import lance
import pytest
import vault
from checkpoints import SAMPLE
from processes import run_cli
from s3_server import s3_server

from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import Failpoint
from danbooru_index.index import vector_index
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.publish import rollback
from danbooru_index.index.status import status, verify
from danbooru_index.index.vector_index import NAME

THRESHOLDS = {
    "index.vector_index.INDEX_ROWS": 100,
    "index.vector_index.ROWS_PER_PARTITION": 64,
    "index.compaction.FRAGMENTS": 3,
    "index.compaction.SMALL_ROWS": 100_000,
    "index.compaction.TARGET_ROWS": 200,
    "storage.local.WORTH_UNCACHING": 1,
    "index.publish.REMEMBERED": 2,
    "ingest.sampling.ESTIMATE_TEXTS": 10,
    "index.schema.FINITE_BLOCK": 64,
    "ingest.prepare.LARGEST_SHARD_BYTES": 4000,
    "progress.TIMELINE_POINTS": 4,
    "ingest.sampling.PROJECTION_QUESTIONS": 50,
    "ingest.sampling.PROJECTION_RECORDS": 100,
    "search.hybrid.CANDIDATES": 20,
    "search.batch.QUERIES_PER_PASS": 2,
    "index.reader.BLOCK_ROWS": 7,
    "model.late_interaction.QUERIES_PER_PRODUCT": 2,
    "index.reader.SCAN_ROWS": 5,
    "ingest.shards.LARGEST_SHARD_BYTES": 8000,
    "ingest.shards.LARGEST_SHARD_ROWS": 50,
    "pipeline.shard_work.LARGEST_SLICE_ROWS": 16,
    "config.SLICE_BYTES": 4096,
}
LOWERED = Path(__file__).parents[1] / "support" / "lowered"
ENV = {
    "PYTHONPATH": f"{LOWERED}:{os.environ.get('PYTHONPATH', '')}",
    "LOWERED": " ".join(f"{name}={value}" for name, value in THRESHOLDS.items()),
}
QUERY = "穿水手服的女孩"


@pytest.fixture
def dump(tmp_path):
    """300 records, in the folder that commands run in; one id occurs twice, so that the hashes have
    a suspect.
    """
    (tmp_path / "data").mkdir()
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:300]
    (tmp_path / "data" / "tags.jsonl").write_text("\n".join([*lines, lines[0]]), encoding="utf-8")
    return "data/tags.jsonl"


def run(*arguments, cwd, code=0, env=ENV):
    answer = run_cli(*arguments, cwd=cwd, env=env)
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stdout


def build(cwd, dump, index, model, *more):
    """`prepare` and `build` as the README writes them, and `verify`: all records, slices,
    compaction.
    """
    run("prepare", dump, "--out", "data/shards", "--shard-rows", 4096, cwd=cwd, code=3)
    options = ["--index", index, "--model", model, "--device", "cpu", "--json"]
    report = json.loads(run("build", "data/shards", *options, *more, cwd=cwd))
    assert report["records"] == 300
    assert report["shards"]["done"] > 3
    assert any("compacted" in note for note in report["notes"])
    assert "every table is whole" in run("verify", index, cwd=cwd)


def find(cwd, index, mode):
    """A query's answers, from a folder that the index is called so in."""
    options = ["--mode", mode, "--limit", 3, "--json", "--device", "cpu"]
    assert len(json.loads(run("search", index, QUERY, *options, cwd=cwd))["hits"]) == 3


def is_indexed(index):
    """Whether the dense table has its index, over every row."""
    generation = IndexRoot(index).current()
    dataset = lance.dataset(
        str(generation.path / "dense.lance"), version=generation.manifest.seal.versions["dense"]
    )
    return dataset.stats.index_stats(NAME)["num_indexed_rows"] == 300


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_relative_path_above_every_threshold(dump, checkpoint, tmp_path):
    """The README's own spelling: every build above 262,144 records failed with it."""
    shutil.copytree(checkpoint, tmp_path / "data" / "model")
    build(tmp_path, dump, "data/index", "data/model")
    assert is_indexed(tmp_path / "data" / "index")
    elsewhere, name = tmp_path.parent, f"./{tmp_path.name}/data/../data/index"
    find(elsewhere, name, "dense")
    find(elsewhere, name, "colbert")
    assert "published" in run("status", name, cwd=elsewhere)
    options = ["--index", "index", "--model", "model", "--device", "cpu", "--json"]
    again = json.loads(run("build", "shards", *options, cwd=tmp_path / "data"))
    assert again["state"] == "already published: nothing to do"


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_path_through_a_symlink_with_spaces_and_cjk_and_signs(dump, checkpoint, tmp_path):
    """A link to a folder whose name has all that a URL, a glob or a shell could stumble over;
    ColBERT projected.
    """
    real = tmp_path / "a b" / "索引 #1 100% [x]?*'\"&;$(x)"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    build(tmp_path, dump, "link/index", checkpoint, "--colbert-dim", 32, "--min-fidelity", 0)
    assert is_indexed(tmp_path / "link" / "index")
    assert "every table is whole" in run("verify", "index", cwd=real)
    find(real, "index", "hybrid")


@pytest.mark.long
@pytest.mark.release
@pytest.mark.ray
@pytest.mark.slow
def test_an_object_store_above_every_threshold(dump, checkpoint, tmp_path):
    with s3_server(tmp_path):
        build(tmp_path, dump, "s3://tags/an index/目录", checkpoint)
        find("/", "s3://tags/an index/目录/", "dense")


@pytest.mark.parametrize("how", ["moved", "copied", "renamed by a link"])
def test_an_index_that_was_moved_opens_verifies_resumes_and_goes_back(how, tmp_path, monkeypatch):
    """Two generations published, a third unfinished; then the folder goes elsewhere, and everything
    goes on there.
    """
    monkeypatch.setattr(vector_index, "INDEX_ROWS", 30)
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    names = vault.shard_names(4)
    first = vault.build(old, names[:2])
    second = vault.build(old, names[:3])
    with pytest.raises(DanbooruIndexError):
        vault.build(old, names, failpoints=(Failpoint("shard.durable", "error", names[2]),))
    new.parent.mkdir()
    if how == "copied":
        shutil.copytree(old, new)
        for path in old.rglob("*"):  # what still pointed there would fail
            path.chmod(0) if path.is_file() else None
    else:
        old.rename(new)
        if how != "moved":
            (tmp_path / "link").symlink_to(new)
            new = tmp_path / "link"
    monkeypatch.chdir(new.parent)
    relative = new.name
    assert verify(relative).problems == []
    assert [g.state for g in status(relative).generations] == ["kept", "published", "unfinished"]
    assert status(relative).generations[2].done == 2
    third = vault.build(relative, names)
    assert third not in (first, second)
    assert len(vault.dense_rows(relative)) == 80
    assert verify(relative).problems == []
    assert rollback(IndexRoot(relative)).id == second
    assert verify(relative).problems == []


def test_every_lowered_threshold_is_one_of_the_product():
    """A constant that was renamed would silently be lowered no more."""
    from importlib import import_module

    for name, value in THRESHOLDS.items():
        home, _, constant = name.rpartition(".")
        assert getattr(import_module(f"danbooru_index.{home}"), constant) != value, name
    assert (LOWERED / "sitecustomize.py").is_file()
