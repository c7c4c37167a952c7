"""The whole job under the real Ray: built, resumed, killed at named points, refused; every record
exactly once.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flag_reference import flag_embedding
from processes import running

from danbooru_index.choices import Device, Mode, Precision
from danbooru_index.config import SLICE_BYTES, BuildConfig, Tuning, Weights
from danbooru_index.errors import (
    DeviceError,
    IndexBusyError,
    ModelError,
    RejectedRecordsError,
    UsageError,
)
from danbooru_index.failpoints import Failpoint
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import read_records
from danbooru_index.index.status import status, verify
from danbooru_index.ingest.prepare import prepare
from danbooru_index.ingest.shards import Shard
from danbooru_index.model.device import nvidia_driver
from danbooru_index.pipeline.build import build, exit_code
from danbooru_index.pipeline.dataset import configure_ray_data
from danbooru_index.pipeline.encode_stage import EncodeShard
from danbooru_index.pipeline.protocol import (
    Outcome,
    ShardResult,
    Task,
    TokenizedShard,
    WorkerSettings,
)
from danbooru_index.pipeline.shard_work import slices
from danbooru_index.prepare_config import PrepareConfig, RejectLimit
from danbooru_index.search.tag_index import TagIndex

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def config(shards, index, model, **options):
    return BuildConfig(
        str(shards), str(index), model=str(model), **{"device": Device.CPU} | options
    )


def table(index, name):
    return (
        lancedb.connect(str(IndexRoot(index).current().path.local_path()))
        .open_table(name)
        .to_arrow()
    )


def contents(index):
    """Everything that a reader can see, by id."""
    tables = {name: table(index, name) for name in ("dense", "sparse", "colbert")}
    ids = tables["dense"]["id"].to_pylist()
    for name in ("sparse", "colbert"):
        assert tables[name]["id"].to_pylist() == ids
    columns = [
        tables["dense"]["vector"],
        tables["sparse"]["token_ids"],
        tables["sparse"]["weights"],
        tables["colbert"]["vectors"],
    ]
    return ids, [column.combine_chunks() for column in columns]


def assert_same(index, expected, tolerance=0.0):
    """The same ids and the same vectors: to the bit, unless the batches differed."""
    ids, columns = contents(index)
    assert ids == expected[0]
    for ours, theirs in zip(columns, expected[1], strict=True):
        if not tolerance:
            assert ours.equals(theirs)
            continue
        while pa.types.is_nested(ours.type):
            ours, theirs = ours.flatten(), theirs.flatten()
        assert np.allclose(ours.to_numpy(), theirs.to_numpy(), atol=tolerance)


@pytest.fixture(scope="module")
def undisturbed(ray_session, sample_shards, checkpoint, tmp_path_factory):
    """The sample, built once without disturbance; fp32, so that vectors can be compared to
    the bit.
    """
    index = tmp_path_factory.mktemp("undisturbed") / "index"
    report = build(config(sample_shards, index, checkpoint, precision=Precision.FP32))
    return index, report, contents(index)


def test_every_record_is_in_each_table_once_in_input_order(undisturbed, sample):
    index, report, (ids, columns) = undisturbed
    assert ids == [record["id"] for record in sample]
    assert report.records == report.encoded == len(sample) == 468
    assert all(len(column) == 468 for column in columns)
    rows = table(index, "dense").to_pylist()
    for row, record in zip(rows, sample, strict=True):
        assert (row["text"], row["tag"], row["category"]) == (
            record["text"],
            record["tag"],
            record["category"],
        )
        assert (row["post_count"], row["aliases"]) == (record["post_count"], record["aliases"])
        assert row["nsfw"] is row["deprecated"] is False
    assert exit_code(report, config("s", "i", "m")) == 0


def test_the_tables_hold_what_flag_embedding_computes(undisturbed, sample, checkpoint):
    _, _, (_, (dense, token_ids, weights, colbert)) = undisturbed
    texts = [record["text"] for record in sample]
    expected = flag_embedding(checkpoint, texts)
    vectors = dense.flatten().to_numpy().reshape(468, -1).astype(np.float32)
    assert np.abs(vectors - expected["dense_vecs"]).max() < 1e-3
    for row in range(0, 468, 13):
        ours = dict(zip(token_ids[row].as_py(), weights[row].as_py(), strict=True))
        theirs = {
            int(token): float(weight) for token, weight in expected["lexical_weights"][row].items()
        }
        assert ours.keys() == theirs.keys()
        assert all(abs(ours[token] - theirs[token]) < 1e-5 for token in ours)
        matrix = np.array(colbert[row].as_py(), dtype=np.float32)
        assert np.abs(matrix - expected["colbert_vecs"][row]).max() < 1e-3


def test_the_report_and_what_is_saved_with_the_generation(undisturbed):
    index, report, _ = undisturbed
    fields = report.to_dict()
    assert {
        "generation", "records", "rejected", "shards", "tokens", "truncated", "padding_waste", "seconds",
        "tags_per_second", "baseline", "devices", "fingerprint",
    } <= fields.keys()  # fmt: skip
    assert fields["shards"] == {"total": 8, "skipped": 0, "done": 8, "failed": 0}
    assert {"total", "startup", "encode", "write", "commit", "index"} <= fields["seconds"].keys()
    assert fields["baseline"]["tags_per_second"] == 96.3
    assert fields["tags_per_second"]["encode"] > fields["tags_per_second"]["end_to_end"] > 0
    assert 0 <= fields["padding_waste"] < 0.15, "the tails of calls, of small shards here"
    assert fields["devices"][0]["tflops_per_second"] > 0
    assert 0 < fields["devices"][0]["busy_share"] <= 1
    assert (
        fields["seconds"]["total"]
        >= fields["seconds"]["startup"] + fields["seconds"]["encode"] - 0.1
    )
    assert "RTX 4090" in report.to_text()
    folder = IndexRoot(index).current().path.local_path()
    assert json.loads((folder / "report.json").read_text())["records"] == 468
    assert (folder / "report.svg").read_text().lstrip().startswith("<?xml")
    assert not list(folder.glob("attempts-*"))


def test_the_same_command_again_does_nothing_but_say_so(undisturbed, sample_shards, checkpoint):
    index, first, before = undisturbed
    again = build(config(sample_shards, index, checkpoint, precision=Precision.FP32))
    assert again.generation == first.generation
    assert again.state == "already published: nothing to do"
    assert again.shards.skipped == 8
    assert again.encoded == 0
    assert again.records == 468
    assert_same(index, before)


def test_verify_and_status_agree(undisturbed):
    index, report, _ = undisturbed
    assert verify(str(index)).problems == []
    described = status(str(index))
    assert described.published == report.generation
    assert described.generations[0].state == "published"
    assert described.generations[0].records == 468


def test_search_in_every_mode(undisturbed, sample, checkpoint):
    index, _, _ = undisturbed
    with TagIndex.open(index) as tags:
        for record in sample[::60]:
            for mode in Mode:
                hits = tags.search(record["text"], mode=mode, limit=3)
                best = [hit for hit in hits if hit.score >= hits[0].score - 2e-3]
                if mode is not Mode.SPARSE:
                    assert record["id"] in [hit.id for hit in best]
                assert hits[0].score == pytest.approx(max(hit.score for hit in hits))
        for blank in ("  ", "\u200b\ufeff", "\u3000\n\x00"):
            with pytest.raises(UsageError, match="empty"):
                tags.search(blank)


def test_search_takes_what_a_caller_may_mean(undisturbed):
    with TagIndex.open(undisturbed[0]) as tags:
        category = tags.search("猫", limit=1, nsfw=True)[0].category
        assert {hit.category for hit in tags.search("猫", category=category, nsfw=True)} == {
            category
        }
        scores = {hit.id: hit.score for hit in tags.search("猫", mode="Hybrid")}
        huge = Weights(4e40, 2e40, 4e40)
        assert {hit.id: hit.score for hit in tags.search("猫", weights=huge)} == pytest.approx(
            scores
        )
        for wrong in ({"mode": "psychic"}, {"limit": 2.5}, {"limit": 0}, {"category": "no such"}):
            with pytest.raises(UsageError):
                tags.search("猫", **wrong)


def test_strict_refuses_before_anything_is_built(checkpoint, tmp_path):
    (tmp_path / "shards").mkdir()
    pq.write_table(
        pa.table({"id": ["1", "2", "1"], "text": ["一", " ", "三"]}),
        tmp_path / "shards" / "a.parquet",
    )
    with pytest.raises(
        RejectedRecordsError,
        match=r"2 of 3 records .*; the first: .*a.parquet:2 empty_text; nothing",
    ):
        build(config(tmp_path / "shards", tmp_path / "index", checkpoint, strict=True))
    assert IndexRoot(tmp_path / "index").generations() == []


@pytest.mark.long
def test_an_open_index_follows_a_change_of_its_query_instruction(
    sample_shards, checkpoint, tmp_path, undisturbed
):
    index = Path(shutil.copytree(undisturbed[0], tmp_path / "index"))
    with TagIndex.open(index) as tags:
        before = tags.search("猫耳", mode="dense", limit=1)[0].dense
        build(
            config(
                sample_shards, index, checkpoint, query_instruction="为: ", precision=Precision.FP32
            )
        )
        assert tags.refresh()
        instructed = tags.search("猫耳", mode="dense", limit=1)[0].dense
    with TagIndex.open(undisturbed[0]) as tags:
        assert instructed == tags.search("为: 猫耳", mode="dense", limit=1)[0].dense != before


def test_hybrid_is_the_score_that_flag_embedding_computes(undisturbed, checkpoint):
    from FlagEmbedding import BGEM3FlagModel

    index, _, _ = undisturbed
    query = "穿水手服的女孩"
    with TagIndex.open(index) as tags:
        hits = tags.search(query, limit=8)
    model = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")
    scores = model.compute_score(
        [(query, hit.text) for hit in hits], weights_for_different_modes=[0.4, 0.2, 0.4]
    )
    for place, hit in enumerate(hits):
        assert hit.score == pytest.approx(scores["colbert+sparse+dense"][place], abs=2e-3)
        assert hit.dense == pytest.approx(scores["dense"][place], abs=2e-3)
        assert hit.sparse == pytest.approx(scores["sparse"][place], abs=2e-3)
        assert hit.colbert == pytest.approx(scores["colbert"][place], abs=2e-3)


def test_another_model_cannot_query(undisturbed, other_checkpoint):
    index, _, _ = undisturbed
    with (
        TagIndex.open(index, model=str(other_checkpoint)) as tags,
        pytest.raises(ModelError, match="another model"),
    ):
        tags.search("x")


@pytest.mark.long
def test_every_change_starts_a_new_generation_and_says_why(
    sample_shards, checkpoint, other_checkpoint, tmp_path, undisturbed
):
    index = Path(shutil.copytree(undisturbed[0], tmp_path / "index"))
    base = {"precision": Precision.FP32}
    first = undisturbed[1]
    steps = [
        (config(sample_shards, index, other_checkpoint, **base), "model id"),
        (
            config(sample_shards, index, other_checkpoint, precision=Precision.BF16, max_length=16),
            "precision (fp32 -> bf16), max length (512 -> 16)",
        ),
    ]
    seen = [first.generation]
    for step, why in steps:
        report = build(step)
        assert report.shards.skipped == 0
        assert any(why in note for note in report.notes), report.notes
        assert report.generation not in seen
        seen.append(report.generation)
    assert report.truncated > 0
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    for path in sorted(sample_shards.glob("*.parquet"))[:3]:
        (smaller / path.name).write_bytes(path.read_bytes())
    report = build(config(smaller, index, checkpoint, **base))
    assert any("input (0 shards new, 5 gone)" in note for note in report.notes)
    assert report.records == 180
    assert len(status(str(index)).generations) == 4


def test_rejects_of_any_parquet_are_counted_and_kept(ray_session, checkpoint, tmp_path):
    ids = ["1", "2", "", "4", "1", None, "7"]
    texts = ["【服装】a - 衣", "b", "c", "  ", "again", "e", "f"]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ids[:4], "text": texts[:4]}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"id": ids[4:], "text": texts[4:]}), tmp_path / "in" / "b.parquet")
    settings = config(tmp_path / "in", tmp_path / "index", checkpoint)
    report = build(settings)
    assert report.records == 3
    assert dict(report.rejected) == {
        "empty_id": 1,
        "empty_text": 1,
        "duplicate_id": 1,
        "missing_id": 1,
    }
    assert exit_code(report, settings) == 3
    lenient = config(
        tmp_path / "in", tmp_path / "index", checkpoint, max_rejects=RejectLimit(count=4)
    )
    assert exit_code(build(lenient), lenient) == 0
    kept = [json.loads(line) for line in Path(report.rejects_file).read_text().splitlines()]
    assert [(Path(r["source"]).name, r["line"], r["reason"]) for r in kept] == [
        ("a.parquet", 3, "empty_id"), ("a.parquet", 4, "empty_text"),
        ("b.parquet", 1, "duplicate_id"), ("b.parquet", 2, "missing_id"),
    ]  # fmt: skip
    rows = table(tmp_path / "index", "dense").to_pylist()
    assert [(row["id"], row["tag"], row["category"]) for row in rows] == [
        ("1", "a", "服装"),
        ("2", "b", ""),
        ("7", "f", ""),
    ]


@pytest.mark.long
def test_failed_shards_can_be_left_out_on_request(
    ray_session, sample_shards, checkpoint, tmp_path, undisturbed
):
    failing = IndexRoot(undisturbed[0]).current().manifest.shards[5]
    fault = Failpoint("encode.before_write", action="error", shard=failing)
    settings = config(
        sample_shards,
        tmp_path / "index",
        checkpoint,
        failpoints=(fault,),
        allow_failed_shards=True,
        precision=Precision.FP32,
    )
    report = build(settings)
    assert exit_code(report, settings) == 3
    assert report.records == 468 - 60
    assert report.failed_shards == [
        {"shard": failing, "message": "injected at encode.before_write"}
    ]
    assert failing in report.to_text()
    ids = set(table(tmp_path / "index", "dense")["id"].to_pylist())
    assert len(ids) == 408
    again = build(config(sample_shards, tmp_path / "index", checkpoint, precision=Precision.FP32))
    assert again.records == 468
    assert any("failed shards are tried again" in note for note in again.notes)


def test_one_owner_works_and_the_other_leaves_with_a_clear_line(
    ray_session, sample_shards, checkpoint, tmp_path
):
    index = tmp_path / "index"
    IndexRoot(index).create()
    with (
        IndexRoot(index).path.owned(),
        pytest.raises(IndexBusyError, match="is at work on this index"),
    ):
        build(config(sample_shards, index, checkpoint))


def test_a_cluster_without_a_gpu_says_so_at_once(ray_session, sample_shards, checkpoint, tmp_path):
    with pytest.raises(DeviceError, match="this cluster has no GPU; pass --device cpu"):
        build(config(sample_shards, tmp_path / "index", checkpoint, device=Device.CUDA))
    assert IndexRoot(tmp_path / "index").generations() == [], "before anything was begun"


@pytest.mark.long
def test_large_shards_are_written_in_slices(
    ray_session, sample_shards, checkpoint, tmp_path, monkeypatch, undisturbed
):
    """More ColBERT bytes than a slice holds: several fragments a shard, the same rows and
    vectors.
    """
    assert len(slices(np.full(4096, 8192), 1024, SLICE_BYTES)) == 512
    assert len(slices(np.full(100_000, 1), 8, SLICE_BYTES)) == 7
    small = Tuning(slice_bytes=50_000)
    build(
        config(
            sample_shards, tmp_path / "index", checkpoint, precision=Precision.FP32, tuning=small
        )
    )
    generation = IndexRoot(tmp_path / "index").current()
    records = read_records(
        generation.path, generation.manifest.shards, generation.manifest.fingerprint_digest
    )
    assert all(len(record.tables["colbert"].fragments) > 2 for record in records.values())
    assert all(len(record.tables["dense"].fragments) == 1 for record in records.values())
    assert_same(tmp_path / "index", undisturbed[2], tolerance=1e-3)


@pytest.mark.long
def test_a_damaged_published_generation_is_left_alone_and_built_anew(
    sample_shards, checkpoint, tmp_path, undisturbed
):
    index = Path(shutil.copytree(undisturbed[0], tmp_path / "index"))
    first = undisturbed[1]
    folder = IndexRoot(index).current().path.local_path()
    data = next((folder / "colbert.lance" / "data").glob("*.lance"))
    content = data.read_bytes()
    data.write_bytes(content[:-100])
    assert any(data.name in problem for problem in verify(str(index)).problems)
    again = build(config(sample_shards, index, checkpoint, precision=Precision.FP32))
    assert again.generation != first.generation
    assert any("is damaged" in note for note in again.notes)
    assert again.records == 468
    assert verify(str(index)).problems == []
    assert not list(folder.glob("shards/*.bad-*"))


def test_queries_carry_the_instruction_of_their_index(
    ray_session, sample_shards, checkpoint, tmp_path, undisturbed
):
    index = tmp_path / "index"
    build(
        config(
            sample_shards,
            index,
            checkpoint,
            query_instruction="为AI绘画搜索相关标签：",
            precision=Precision.FP32,
        )
    )
    with TagIndex.open(index) as tags:
        instructed = tags.search("猫耳", mode="dense", limit=3)
    with TagIndex.open(undisturbed[0]) as tags:
        assert [
            hit.dense for hit in tags.search("为AI绘画搜索相关标签：猫耳", mode="dense", limit=3)
        ] == [hit.dense for hit in instructed]
        assert [hit.dense for hit in tags.search("猫耳", mode="dense", limit=3)] != [
            hit.dense for hit in instructed
        ]


def test_nsfw_tags_only_on_request(ray_session, checkpoint, tmp_path):
    lines = [
        {"id": str(n), "text": f"【通用】tag_{n} - 标签{n}", "nsfw": n % 2 == 0, "post_count": n}
        for n in range(40)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(PrepareConfig((str(tmp_path / "a.jsonl"),), str(tmp_path / "shards")))
    build(config(tmp_path / "shards", tmp_path / "index", checkpoint))
    with TagIndex.open(tmp_path / "index") as tags:
        for mode in Mode:
            safe = tags.search("tag_4", mode=mode, limit=40)
            assert safe
            assert not any(hit.nsfw for hit in safe)
            assert any(hit.nsfw for hit in tags.search("tag_4", mode=mode, limit=40, nsfw=True))


def test_a_pool_that_is_busy_grows_when_a_gpu_joins(ray_session):
    """What Ray compares: tasks in flight a call (one more than calls), with its threshold. (With a
    second node: BENCHMARKS.)
    """
    import ray

    configure_ray_data()
    threshold = (
        ray.data.DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold
    )
    assert all(threshold <= (calls + 1) / calls for calls in Tuning().calls_at_once)


def test_as_many_shards_are_in_hand_as_planned(
    ray_session, undisturbed, sample_shards, checkpoint, tmp_path, monkeypatch
):
    """Each waits half a second before it is written: six are seen at once, no more, and every bit
    is the same.
    """
    slow = Failpoint("encode.before_write", "pause")
    index = tmp_path / "index"
    build(
        config(
            sample_shards,
            index,
            checkpoint,
            precision=Precision.FP32,
            failpoints=(slow,),
            tuning=Tuning((6, 6)),
        )
    )
    assert_same(index, undisturbed[2])
    generation = IndexRoot(index).current()
    records = read_records(
        generation.path, generation.manifest.shards, generation.manifest.fingerprint_digest
    )
    spans = [(record.stats.started, record.stats.ended) for record in records.values()]
    assert len(spans) == 8
    assert 3 < max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans) <= 6


def test_a_card_that_cannot_load_the_model_is_named(ray_session, monkeypatch):
    """Of eight cards another program may hold one."""

    def full(settings):
        raise ModelError("the model does not fit the memory of this cuda device")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    settings = WorkerSettings(
        "m", "m", "", "", "cuda", "fp16", 512, 64, 64, None, None, 1 << 20, encoder=full
    )
    row = TokenizedShard(Task(Shard("a", "a.parquet", 0, 1, ""))).to_row()
    result = ShardResult.from_row(EncodeShard(settings)(row))
    assert result.outcome is Outcome.FATAL
    assert (
        result.message
        == f"the model does not fit the memory of this cuda device ({os.uname().nodename}, GPU 5)"
    )


@pytest.mark.long
@pytest.mark.skipif(nvidia_driver() is not None, reason="there is a GPU here")
def test_gpus_that_ray_offers_and_torch_cannot_use_are_an_error(
    sample_shards, checkpoint, tmp_path
):
    """A Ray with a logical GPU, on a machine without one: asked on a worker that holds it, refused
    by name.
    """
    words = [sample_shards, tmp_path / "index", checkpoint]
    out, err = on_logical_gpus(1, words)
    assert "refused: --device cuda, but there is no NVIDIA GPU here" in out, err


def on_logical_gpus(count, words, env=None):
    """What a build says on a Ray of its own with so many GPUs, whatever cards there are."""
    with running(
        [sys.executable, "-c", LOGICAL_GPUS, str(count), *map(str, words)], env
    ) as process:
        return process.communicate(timeout=120)


LOGICAL_GPUS = """
import ray, sys
from danbooru_index.config import *
from danbooru_index.errors import DeviceError
from danbooru_index.pipeline.build import build
count, shards, index, model = sys.argv[1:]
ray.init(address="local", num_cpus=2, num_gpus=int(count), include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
try:
    build(BuildConfig(shards, index, model=model))
except DeviceError as error:
    print("refused:", error)
"""


@pytest.mark.long
@pytest.mark.skipif(nvidia_driver() is not None, reason="there is a GPU here")
def test_more_gpus_than_cards_are_refused_unless_a_card_is_named_twice(
    sample_shards, checkpoint, tmp_path
):
    """`ray start --num-gpus 2` with one card. (`nvidia-smi` is a script that lists one; torch then
    refuses the card, which is the next thing asked.)
    """
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\n"
        'case "$1" in -L) echo "GPU 0: NVIDIA H200 (UUID: GPU-1)";;'
        ' *) echo "NVIDIA H200, 590.1";; esac\n'
    )
    tool.chmod(0o755)
    env = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    words = [sample_shards, tmp_path / "index", checkpoint]
    out, err = on_logical_gpus(2, words, env)
    assert "refused: Ray offers 2 GPUs on node" in out, err
    assert "1 card is there: start Ray there with --num-gpus 1" in out
    out, err = on_logical_gpus(2, words, env | {"CUDA_VISIBLE_DEVICES": "0,0"})
    assert "refused: NVIDIA H200 (driver 590.1) cannot be used: torch" in out, err
