"""An index that an earlier version wrote opens, verifies, answers, goes back and is gone on with.

`data/index_of_0_1` was written by commit c50aa71, before the modules moved into rooms: 72 records
in 6 shards, a model of one layer; a generation in full width, kept; one projected to 8 values with
compacted tables, published; an unfinished one, with 3 shards done and what three failed shards
left.
"""

import json
import shutil
from pathlib import Path

import pytest

from danbooru_index.choices import Device, Precision
from danbooru_index.config import BuildConfig
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import CompletionRecord
from danbooru_index.index.manifest import Manifest
from danbooru_index.index.publish import rollback
from danbooru_index.index.status import status, verify
from danbooru_index.pipeline.build import build
from danbooru_index.search.hybrid import M3_ALONE
from danbooru_index.search.tag_index import TagIndex
from danbooru_index.storage.base import from_checked_json, to_checked_json

WRITTEN = Path(__file__).parents[1] / "data" / "index_of_0_1"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A copy, in the working directory, as its paths were given."""
    shutil.copytree(WRITTEN, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_it_is_described_and_verified(earlier):
    found = status("index")
    assert [(g.state, g.records, g.done, g.colbert_dim) for g in found.generations] == [
        ("kept", 72, 6, 32),
        ("published", 72, 6, 8),
        ("unfinished", 0, 3, 32),
    ]
    assert found.problems == verify("index").problems == []


def test_its_documents_are_read_and_written_to_the_byte(earlier):
    manifests = sorted(earlier.glob("index/generations/*/manifest.json"))
    records = sorted(earlier.glob("index/generations/*/shards/*.json"))
    assert (len(manifests), len(records)) == (3, 15)
    for path in manifests:
        content = path.read_bytes()
        assert to_checked_json(Manifest.from_json(from_checked_json(content)).to_json()) == content
    for path in records:
        content = path.read_bytes()
        assert CompletionRecord.from_bytes(content).to_bytes() == content


def test_it_answers_as_it_did(earlier):
    expected = json.loads((earlier / "answers.json").read_text(encoding="utf-8"))
    with TagIndex.open("index", model="model") as index:
        for asked, answers in expected.items():
            mode, _, query = asked.partition(" ")
            hits = index.search(query, mode=mode, limit=5, nsfw=True, fusion=M3_ALONE)
            assert [hit.score for hit in hits] == pytest.approx(
                [score for _, score in answers], abs=1e-4
            )
            assert hits[0].tag == answers[0][0]


def test_it_is_searched_by_names_though_it_has_no_table_of_them(earlier):
    with TagIndex.open("index", model="nowhere/") as index:
        tag = IndexRoot("index").current()
        assert not tag.manifest.seal.search_files
        wanted = json.loads((earlier / "answers.json").read_text(encoding="utf-8"))
        named = next(iter(wanted.values()))[0][0]
        hit = index.search(named, mode="lexical", limit=1, nsfw=True)[0]
        assert (hit.tag, hit.reason, hit.matched, hit.dense) == (named, "exact", named, None)


def test_it_goes_back_to_the_generation_in_full_width(earlier):
    assert rollback(IndexRoot("index")).id.startswith("g000001")
    assert verify("index").problems == []
    with TagIndex.open("index", model="model") as index:
        assert index.search("school", limit=1)


@pytest.mark.ray
@pytest.mark.slow
def test_its_unfinished_generation_is_gone_on_with(ray_session, earlier):
    config = BuildConfig(
        "shards", "index", model="model", device=Device.CPU, precision=Precision.FP32, max_length=48
    )
    report = build(config)
    assert report.generation.startswith("g000003")
    assert (report.shards.skipped, report.shards.done, report.records) == (3, 3, 72)
    assert verify("index").problems == []
    assert [g.state for g in status("index").generations] == ["kept", "kept", "published"]
