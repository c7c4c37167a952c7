"""Generations: published, rolled back and pruned; why a build starts anew."""

from dataclasses import replace
from pathlib import Path

import pytest
from vault import SPECS, committed, manifest, write_shard

from danbooru_index.errors import RejectedRecordsError, StorageError, UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.commit import commit
from danbooru_index.index.lifecycle import open_generation
from danbooru_index.index.manifest import Fingerprint, Seal, describe_difference
from danbooru_index.index.publish import prune, publish, rollback
from danbooru_index.index.schema import table_path
from danbooru_index.index.status import status
from danbooru_index.storage.base import from_checked_json, to_checked_json


def seal(root, generation, at, **fields):
    """The generation, sealed then and published."""
    known = generation.manifest.seal
    versions = known.versions if known else dict.fromkeys(("dense", "sparse", "colbert"), 1)
    sealed = replace(
        generation, manifest=replace(generation.manifest, seal=Seal(at, versions, 0, **fields))
    )
    sealed.save()
    publish(root, sealed)
    return sealed


def test_publish_roll_back_and_prune(index):
    with pytest.raises(StorageError, match="nothing is published"):
        index.current()
    generations = [index.start(manifest([])) for _ in range(4)]
    with pytest.raises(StorageError, match="not finished"):
        publish(index, generations[0])
    for number, generation in enumerate(generations):
        seal(index, generation, at=1000.0 + number)
        assert index.current().id == generation.id
    assert rollback(index).id == generations[2].id == index.current().id
    assert prune(index, keep=1, grace_s=0) == [generations[0].id, generations[1].id]
    assert index.current().id == generations[2].id, "the published one stays"
    with pytest.raises(StorageError, match="no earlier"):
        rollback(index)
    with pytest.raises(UsageError, match="--keep"):
        prune(index, keep=0)


def test_rollback_goes_back_in_the_order_of_publication(index):
    first, second, third = (index.start(manifest([])) for _ in range(3))
    first, second, third = (
        seal(index, generation, at=1000.0) for generation in (first, second, third)
    )
    publish(index, first)
    assert [rollback(index).id for _ in range(2)] == [third.id, second.id]
    with pytest.raises(StorageError, match="no earlier"):
        rollback(index)
    assert index.current().id == second.id


def test_an_index_from_before_publications_were_remembered(index):
    for _ in range(3):
        seal(index, index.start(manifest([])), at=1000.0)
    path = Path(index.path / "CURRENT.json")
    body = from_checked_json(path.read_bytes())
    path.write_bytes(
        to_checked_json({name: body[name] for name in ("generation", "versions", "published_at")})
    )
    assert rollback(index).id.startswith("g000002")
    assert rollback(index).id.startswith("g000001")


def test_strict_publishes_no_generation_that_leaves_records_out(index):
    wanted = manifest([])
    first = seal(index, index.start(manifest([])), at=1000.0, rejected={"empty_text": 2})
    second = seal(index, index.start(manifest([], input_digest="j")), at=1000.0)
    with pytest.raises(RejectedRecordsError, match=f"{first.id} is this build, without 2 records"):
        open_generation(index, wanted, strict=True)
    assert index.current().id == second.id
    assert open_generation(index, wanted).finished
    assert index.current().id == first.id


def test_rollback_passes_over_what_is_damaged(index):
    whole, emptied, cut, last = (index.start(manifest(shards)) for shards in ([], ["a"], [], []))
    _, record, _ = write_shard(emptied, "a")
    emptied = committed(emptied, commit(emptied.path, SPECS, [record]))
    for generation in (whole, emptied, cut, last):
        seal(index, generation, at=1000.0)
    next((table_path(emptied.path, "sparse").local_path() / "data").glob("*.lance")).unlink()
    (cut.path.local_path() / "manifest.json").write_bytes(b"{")
    assert list(index.damaged()) == [cut.id]
    assert "cannot be read" in status(str(index.path)).problems[0]
    assert rollback(index).id == whole.id
    with pytest.raises(StorageError, match="no earlier"):
        rollback(index)
    assert index.start(manifest([])).id.startswith("g000005"), "a number is not given twice"


def test_what_was_never_published_takes_no_place_among_those_kept(index):
    """As what guards kept back, night after night: the last of these stays, to be published."""
    first = seal(index, index.start(manifest([])), at=1000.0)
    second = seal(index, index.start(manifest([])), at=1001.0)
    waiting = [index.start(manifest(["a"])) for _ in range(3)]
    for generation in waiting:
        known = Seal(1002.0, dict.fromkeys(("dense", "sparse", "colbert"), 1), 0)
        replace(generation, manifest=replace(generation.manifest, seal=known)).save()
    assert prune(index, keep=2, grace_s=0) == [one.id for one in waiting[:2]]
    left = [generation.id for generation in index.generations()]
    assert left == [first.id, second.id, waiting[2].id]


def test_abandoned_builds_can_be_pruned_and_the_last_one_stays(index):
    seal(index, index.start(manifest([])), at=1000.0)
    abandoned = [index.start(manifest(["a"])).id for _ in range(3)]
    assert prune(index, keep=1) == abandoned[:2]
    assert [generation.id for generation in index.generations()][1:] == abandoned[2:]


def test_a_folder_without_a_manifest_is_cleared(index):
    headless = Path(index.path / "generations" / "g000001-deadbeef")
    headless.mkdir(parents=True)
    seal(index, index.start(manifest([])), at=1000.0)
    prune(index, keep=1)
    assert not headless.exists()


def test_a_name_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = IndexRoot("tags-2026-11-22T10:00")
    root.create()
    generation = root.start(manifest(["a"]))
    _, record, _ = write_shard(generation, "a")
    assert commit(generation.path, SPECS, [record])["dense"] == 1
    with pytest.raises(UsageError, match="s3://bucket/prefix"):
        IndexRoot("s3:/bucket/index")


def test_pruning_waits_for_readers(index):
    import time

    for _ in range(3):
        seal(index, index.start(manifest([])), at=time.time())
    assert prune(index, keep=1) == []


def test_the_grace_period_begins_when_a_generation_is_replaced(index):
    """Rolled back to, read, replaced just now: its age says nothing about its readers."""
    generations = [index.start(manifest([])) for _ in range(3)]
    for generation in generations:
        seal(index, generation, at=1000.0)
    rollback(index)
    newest = index.start(manifest([]))
    seal(index, newest, at=2000.0)
    for folder in (generations[0], generations[2]):
        (folder.path.local_path() / "superseded_at").write_text("1500")
    assert prune(index, keep=1) == [generations[0].id, generations[2].id]
    assert generations[1].path.is_folder(), "its readers may still be at work"
    assert prune(index, keep=1, grace_s=0) == [generations[1].id]


def test_a_generation_half_deleted_is_no_generation(index):
    first, second = (index.start(manifest([])) for _ in range(2))
    for generation in (first, second):
        seal(index, generation, at=1000.0)
    trash = first.path.local_path().with_name(f".trash-{first.id}")
    first.path.local_path().rename(trash)
    with pytest.raises(StorageError, match="no earlier"):
        rollback(index)
    prune(index, keep=1)
    assert not trash.exists()


def test_a_damaged_current_file_is_named_and_rollback_repairs_it(index):
    seal(index, index.start(manifest([])), at=1.0)
    (index.path.local_path() / "CURRENT.json").write_text("{")
    with pytest.raises(StorageError, match="rollback"):
        index.current()
    rollback(index)
    assert index.current()


def test_why_a_build_starts_anew():
    old = manifest(["a", "b"])
    changed = Fingerprint("n" * 64, "bf16", 256, codec="128")
    other = manifest(["b", "c"], fingerprint=changed, input_digest="j", query_instruction="q")
    words = describe_difference(old, other)
    for word in (
        "model id", "precision (fp32 -> bf16)", "max length (512 -> 256)", "codec", "1 shards new, 1 gone", "instruction",
    ):  # fmt: skip
        assert word in words
    assert describe_difference(old, manifest(["a", "b"])) == ""


def test_the_folder_of_an_index_is_not_taken_from_others(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        IndexRoot(tmp_path / "file")
    with pytest.raises(UsageError, match="not an index"):
        IndexRoot(tmp_path).create()
