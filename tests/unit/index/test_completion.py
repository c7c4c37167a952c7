"""Completion records: the first wins, nothing is believed that is not there, orphans go."""

import os
import threading
from pathlib import Path

import pytest
from vault import SPECS, committed, manifest, verify_all, write_shard

from danbooru_index.index.commit import commit, sweep_orphans
from danbooru_index.index.completion import CompletionRecord, complete, read_records, record_path
from danbooru_index.index.schema import table_path


def test_the_first_completion_record_wins_and_a_loser_keeps_its_hands_off(index):
    generation = index.start(manifest(["a"]))
    first, record, _ = write_shard(generation, "a", seed=1)
    second, late, _ = write_shard(generation, "a", seed=2, finish=False)
    assert not complete(generation.path, late)
    assert complete(generation.path, record), (
        "the same attempt asking again is told that it is done"
    )
    second.discard()
    records = read_records(generation.path, ["a"], generation.manifest.fingerprint_digest)
    assert records["a"].attempt == first.attempt
    assert verify_all(generation, [records["a"]]) == []


def test_many_writers_of_one_shard_leave_one_record(index):
    generation = index.start(manifest(["a"]))
    results = []

    def attempt(number):
        writer, record, _ = write_shard(generation, "a", seed=number, finish=False)
        won = complete(generation.path, record)
        if not won:
            writer.discard()
        results.append(won)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    records = list(
        read_records(generation.path, ["a"], generation.manifest.fingerprint_digest).values()
    )
    assert sweep_orphans(generation.path, SPECS, records) == 0
    generation = committed(generation, commit(generation.path, SPECS, records))
    assert verify_all(generation, records) == []


@pytest.mark.parametrize("damage", ["truncated", "foreign", "not json", "file gone", "file cut"])
def test_a_record_that_cannot_be_believed_is_set_aside(index, damage):
    generation = index.start(manifest(["a", "b"]))
    write_shard(generation, "a")
    _, record, _ = write_shard(generation, "b", seed=1)
    path = Path(record_path(generation.path, "b"))
    data = Path(
        table_path(generation.path, "colbert")
        / "data"
        / record.tables["colbert"].fragments[0]["files"][0]["path"]
    )
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "foreign":
        path.write_bytes(CompletionRecord("b", "another", "x", 0, 0, {}).to_bytes())
    elif damage == "not json":
        path.write_bytes(b"\x00" * 100)
    elif damage == "file gone":
        data.unlink()
    else:
        os.truncate(data, 100)
    found = read_records(generation.path, ["a", "b"], generation.manifest.fingerprint_digest)
    assert list(found) == ["a"]
    assert path.with_name("b.json.bad-1").exists()
    write_shard(generation, "b", seed=2)
    assert (
        len(read_records(generation.path, ["a", "b"], generation.manifest.fingerprint_digest)) == 2
    )


def test_orphans_are_swept_and_only_they(index):
    generation = index.start(manifest(["a"]))
    write_shard(generation, "a")
    write_shard(generation, "a", seed=5, finish=False)
    records = list(
        read_records(generation.path, ["a"], generation.manifest.fingerprint_digest).values()
    )
    before = sorted(
        path for path in generation.path.local_path().rglob("*") if path.parent.name != "data"
    )
    Path(generation.path / "attempts-0123abcd" / "all").mkdir(parents=True)
    Path(generation.path / "shards" / ".b.json.0123.tmp").write_text("{")
    assert sweep_orphans(generation.path, SPECS, records) == 4, (
        "dense, sparse and two slices of ColBERT"
    )
    assert (
        sorted(
            path for path in generation.path.local_path().rglob("*") if path.parent.name != "data"
        )
        == before
    )
    assert verify_all(generation, records) == []
