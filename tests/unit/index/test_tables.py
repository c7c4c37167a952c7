"""The vault without Ray: packing, fragments, completion records, commits, generations; real Lance
throughout.
"""

import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from vault import DIM, SPECS, committed, make_encoding, make_records, manifest, write_shard

from danbooru_index.choices import Mode
from danbooru_index.config import Filter
from danbooru_index.embeddings import TokenBatch, ragged_take
from danbooru_index.errors import IndexBusyError, RejectedRecordsError, StorageError, UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.checks import verify_table
from danbooru_index.index.commit import commit, sweep_orphans
from danbooru_index.index.completion import CompletionRecord, complete, read_records, record_path
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.lance_io import table_path
from danbooru_index.index.lifecycle import open_generation
from danbooru_index.index.manifest import Fingerprint, Seal, describe_difference
from danbooru_index.index.publish import prune, publish, rollback
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import TableDigest, count_non_finite, table_specs, to_rows
from danbooru_index.index.status import status
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.filters import allowed
from danbooru_index.search.hybrid import retrievers
from danbooru_index.search.retriever import EncodedQuery
from danbooru_index.storage import local as durable
from danbooru_index.storage.base import from_checked_json, to_checked_json
from danbooru_index.storage.local import LocalStorage


@pytest.fixture
def index(tmp_path):
    root = IndexRoot(tmp_path / "index")
    root.create()
    return root


@pytest.fixture
def built(index):
    generation = index.start(manifest(["a", "b", "c"]))
    for number, shard in enumerate("abc"):
        write_shard(generation, shard, seed=number)
    records = list(
        read_records(
            generation.path, ["a", "b", "c"], generation.manifest.fingerprint_digest
        ).values()
    )
    generation = committed(generation, commit(generation.path, SPECS, records))
    return generation


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


def verify_all(generation, records):
    seal = generation.manifest.seal
    versions = seal.versions if seal else commit(generation.path, SPECS, records)
    return [
        problem
        for spec in SPECS
        for problem in verify_table(generation.path, spec, versions[spec.name], records)
    ]


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


def test_a_write_that_does_not_fit_is_an_error_and_leaves_nothing(index):
    """A limit on the file size: Lance may swallow the error of the last write; the reread
    must not.
    """
    import resource
    import signal

    generation = index.start(manifest(["a"]))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes = set()
    for limit in range(200, 12_000, 293):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            _, record, _ = write_shard(generation, "a", finish=False)
            outcomes.add("written")
        except StorageError:
            outcomes.add("refused")
            continue
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert verify_all(generation, [record]) == []
    assert outcomes == {"written", "refused"}


def test_a_digest_does_not_depend_on_batches_and_notices_every_change():
    records, encoding = make_records(40), make_encoding(40)
    for spec in SPECS:
        table = to_rows(spec, records, "s", encoding)
        whole, parts = TableDigest(), TableDigest()
        whole.update(table)
        for start in range(0, 40, 7):
            parts.update(table.slice(start, 7))
        assert whole.hexdigest() == parts.hexdigest()
        swapped = TableDigest()
        swapped.update(table.take([1, 0, *range(2, 40)]))
        assert swapped.hexdigest() != whole.hexdigest()
        other = TableDigest()
        other.update(to_rows(spec, records, "t", encoding))
        assert other.hexdigest() != whole.hexdigest()


def test_non_finite_values_are_refused(index):
    generation = index.start(manifest(["a"]))
    encoding = make_encoding(5)
    encoding.colbert[2, 3] = np.inf
    assert count_non_finite(to_rows(SPECS[2], make_records(5), "a", encoding), "vectors") == 1
    with pytest.raises(StorageError, match="1 non-finite values for table colbert"):
        ShardWriter(generation.path, "a", SPECS).write(make_records(5), encoding)


def test_one_owner_at_a_time_and_the_next_at_once(index):
    with (
        index.path.owned(),
        pytest.raises(IndexBusyError, match=f"process {os.getpid()}"),
        index.path.owned(),
    ):
        pass
    with index.path.owned():
        pass


def test_exclusive_creation(tmp_path):
    assert LocalStorage(tmp_path / "a").create(b"1")
    assert not LocalStorage(tmp_path / "a").create(b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


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


def test_equal_vectors_find_themselves_by_a_tied_score(index):
    from danbooru_index.pipeline.self_check import Sample, self_queries

    generation = index.start(manifest(["a"]))
    count = 120
    encoding = make_encoding(count)
    encoding.dense[:] = encoding.dense[0]
    writer = ShardWriter(generation.path, "a", SPECS)
    records = make_records(count)
    writer.write(records, encoding)
    record = CompletionRecord("a", "f", writer.attempt, count, count, writer.finish())
    generation = committed(generation, commit(generation.path, SPECS, [record]))
    reader = GenerationReader(generation)
    texts = records["text"].to_pylist()
    samples = [Sample(f"r{row}", texts[row], "a") for row in (3, 60, 110)]
    asked = encoding.keep(np.isin(np.arange(count), [3, 60, 110]))
    assert self_queries(reader, samples, asked) == []
    wrong = encoding.keep(np.isin(np.arange(count), [4, 61, 111]))
    assert self_queries(reader, samples, wrong), "another record's vectors are noticed"


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


def test_retrievers_score_exactly(built):
    """By hand, for every row; candidates are the best of these, and have the same scores."""
    reader = GenerationReader(built)
    encodings = [make_encoding(20, seed) for seed in range(3)]
    asked = make_encoding(3, 9)
    query = EncodedQuery(
        encodings[1].dense[13].astype(np.float32), {0: 0.5, 2: 2.0, 99: 1.0}, asked.colbert
    )
    by_hand = {
        Mode.DENSE: np.concatenate([e.dense for e in encodings]).astype(np.float32) @ query.dense,
        Mode.SPARSE: np.array([
            sum(query.sparse.get(token, 0) * weight for token, weight in e.sparse_row(row).items())
            for e in encodings for row in range(20)
        ]),
        Mode.COLBERT: np.array([
            (asked.colbert.astype(np.float32) @ e.colbert_row(row).astype(np.float32).T).max(1).mean()
            for e in encodings for row in range(20)
        ]),
    }  # fmt: skip
    everything = allowed(reader, Filter(nsfw=True))
    for mode, retriever in retrievers(reader).items():
        expected = by_hand[mode]
        assert np.allclose(retriever.score(query, np.arange(60)), expected, atol=1e-3), mode
        assert np.allclose(
            retriever.score(query, np.array([41, 2, 20])), expected[[41, 2, 20]], atol=1e-3
        ), mode
        assert not len(retriever.score(query, np.array([], np.int64)))
        rows, scores = retriever.candidates(query, 5, everything)
        assert np.allclose(scores, retriever.score(query, rows), atol=1e-6), mode
        best = [
            score for score in np.sort(expected)[::-1][:5] if score > 0 or mode is not Mode.SPARSE
        ]
        assert np.allclose(scores, best, atol=2e-3), mode
    assert reader.row_of("c-4") == 44
    assert reader.id_problems() == []


def test_max_sim_of_rows_without_vectors_is_zero():
    rows = as_matrices([np.zeros((0, 2)), np.eye(2), np.zeros((0, 2))])
    assert max_sim(as_matrices([np.array([[1.0, 0.0], [0.0, 0.5]])]), rows).tolist() == [
        [0.0, 0.75, 0.0]
    ]
    assert max_sim(as_matrices([np.zeros((0, 2))]), rows).tolist() == [[0.0, 0.0, 0.0]]


def test_ragged_rows():
    assert ragged_take(np.array([2, 0, 3]), np.array([2, 0, 1, 2])).tolist() == [
        2,
        3,
        4,
        0,
        1,
        2,
        3,
        4,
    ]
    batch = TokenBatch(np.arange(6, dtype=np.int32), np.array([1, 2, 3], np.int32), (0,))
    assert batch.rows(1, 3).token_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.rows(1, 3).special == (0,)


def test_a_large_table_gets_an_index_that_finds_what_exact_search_finds(index, monkeypatch):
    """IVF_RQ over every row, durable and in the seal; small tables have none and are searched
    exactly.
    """
    from danbooru_index.index import vector_index
    from danbooru_index.index.lifecycle import seal_and_publish
    from danbooru_index.pipeline.self_check import check_tables

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
    reader = GenerationReader(index.current())
    dense, everything = DenseRetriever(reader), allowed(reader, Filter(nsfw=True))
    rare_ones = allowed(reader, Filter(("rare",), nsfw=True))
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


def is_cached(path):
    """Whether the first bytes of a file are in memory."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(16)], 0, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_large_colbert_files_leave_memory_once_they_are_durable(index, tmp_path, monkeypatch, size):
    """The others stay: they are indexed and searched next."""
    monkeypatch.setattr(durable, "WORTH_UNCACHING", size)
    probe = tmp_path / "probe"
    probe.write_bytes(b"p" * 4096)
    LocalStorage(probe).sync()
    with probe.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(probe):
        pytest.skip("this file system is in memory")
    generation = index.start(manifest(["a"]))
    write_shard(generation, "a")
    cached = {
        name: all(
            map(is_cached, (table_path(generation.path, name).local_path() / "data").iterdir())
        )
        for name in ("dense", "sparse", "colbert")
    }
    assert cached == {"dense": True, "sparse": True, "colbert": size > 0}
