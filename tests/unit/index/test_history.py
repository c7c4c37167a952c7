"""The runs that made an index, as they are kept and told."""

from dataclasses import replace

import pytest

from danbooru_index.index import history as kept
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.history import RunRecord, history, remember


@pytest.fixture
def root(tmp_path):
    made = IndexRoot(tmp_path / "i")
    made.create()
    return made


def test_runs_come_back_as_they_were_oldest_first_and_old_ones_go(root, monkeypatch):
    monkeypatch.setattr(kept, "RUNS_KEPT", 5)
    assert history(root) == []
    runs = [RunRecord("i", "published", at=1_700_000_000.0 + n, records=n) for n in range(8)]
    for run in runs:
        remember(root, run)
    assert history(root) == runs[3:]


def test_a_damaged_one_is_passed_over_and_a_later_version_is_read(root):
    remember(root, RunRecord("i", "published", at=1_700_000_000.0, records=7))
    (root.path / "history" / "20000101T000000-aaaaaaaa.json").replace(b"{")
    assert [run.records for run in history(root)] == [7]
    assert RunRecord.from_dict({"index": "i", "outcome": "failed", "colour": 1}).outcome == "failed"


def test_each_outcome_in_one_line():
    run = RunRecord(
        "i", "published", generation="g2", before="g1", records=1000, added=3, removed=2,
        retexted=1, encoded=1000, rejected=4, seconds=12.3, tags_per_second=963.0, ratio=10.0,
    )  # fmt: skip
    assert run.to_text() == (
        "rebuild published g2: 1,000 records (+3 -2 tags, 1 with another text), 4 left out, 1,000"
        " encoded, 12.3 s, 963.0 tags/s, 10.00x baseline"
    )
    night = replace(run, encoded=10, reused=990)
    assert night.to_text().endswith("4 left out, 10 encoded, 990 reused, 12.3 s")  # no speed
    assert "(the first)" in RunRecord("i", "published", records=9).to_text()
    failed = RunRecord("i", "failed", 1, "the dump is empty")
    assert failed.to_text() == "rebuild failed: the dump is empty"
