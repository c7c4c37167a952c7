"""Evaluation against values worked out by hand, the bulk ranking against `search`'s own, and the
verb end to end.
"""

import json

import numpy as np
import pytest

from danbooru_index.choices import Device, Mode, Precision
from danbooru_index.cli.entry import main
from danbooru_index.config import BuildConfig, Filter, Weights
from danbooru_index.errors import InputError
from danbooru_index.evaluation.baselines import bm25, char_tfidf
from danbooru_index.evaluation.evaluate import ABLATED, EvaluateConfig, evaluate
from danbooru_index.evaluation.metrics import interval, per_query
from danbooru_index.evaluation.queries import Query, read_queries
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.pipeline.build import build
from danbooru_index.search.batch import rank_many
from danbooru_index.search.hybrid import rank
from danbooru_index.search.query_encoder import QueryEncoder

QUERIES = [Query("a", ("x",), "zh"), Query("b", ("y", "z"), "zh"), Query("c", ("w",), "alias")]


def test_measures_are_what_the_definitions_say():
    run = [["q", "x"], ["y", "q", "z"], []]
    values = per_query(QUERIES, run)
    assert values["R@1"].tolist() == [0, 0.5, 0]
    assert values["R@10"].tolist() == [1, 1, 0]
    assert values["RR"].tolist() == [0.5, 1, 0]
    assert values["AP@10"] == pytest.approx([0.5, (1 + 2 / 3) / 2, 0])
    assert values["nDCG@10"] == pytest.approx(
        [1 / np.log2(3), (1 + 1 / 2) / (1 + 1 / np.log2(3)), 0]
    )


def test_a_tag_that_several_records_share_counts_once():
    assert per_query(QUERIES[:1], [["q", "q", "q", "x"]])["RR"].tolist() == [0.5]


def test_intervals_hold_the_mean_and_shrink_with_more_queries():
    chance = np.random.default_rng(0)
    few, many = interval(chance.random(50)), interval(chance.random(5000))
    assert few[1] < few[0] < few[2]
    assert many[2] - many[1] < few[2] - few[1]
    assert interval(np.ones(10)) == [1, 1, 1]


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '{"query": "a"}', '{"query": "", "relevant": ["x"]}', '{"query": "a", "relevant": []}',
     '{"query": "a", "relevant": "x"}', '{"query": 3, "relevant": ["x"]}', '{"query": "a", "relevant": ["x"], "kind": 1}'],
)  # fmt: skip
def test_a_query_that_cannot_be_used_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "a", "relevant": ["x"]}\n' + line + "\n")
    with pytest.raises(InputError, match=r"queries\.jsonl:2: "):
        read_queries(str(path))


@pytest.mark.parametrize(
    "line",
    [
        {"query": "\ud800", "relevant": ["a"]},
        {"query": "a", "relevant": ["\ud800"]},
        {"query": "a", "relevant": [""]},
        {"query": "a", "relevant": ["a\0b"]},
        {"query": "\u200b", "relevant": ["a"]},
        {"query": "a", "relevant": ["a"], "kind": "all"},
        {"query": "a", "relevant": ["a"], "kind": "\udc80"},
    ],
    ids=repr,
)
def test_what_would_end_the_process_or_hide_a_row_is_named_by_its_line(tmp_path, line):
    """A lone surrogate in a tag was a segmentation fault, without a word."""
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(
        InputError, match=r"q\.jsonl:1: query, kind and tags must be texts that can be seen"
    ):
        read_queries(str(tmp_path / "q.jsonl"))


def test_texts_without_a_word_are_no_error_of_the_baselines():
    assert bm25(["^_^", "___"], ["a", "b"], [Query("maid", ("a",), "x")]) == [[]]


def test_queries_written_by_other_programs(tmp_path):
    """A byte order mark, line ends of Windows, and characters that only look like line ends."""
    path = tmp_path / "queries.jsonl"
    lines = [
        json.dumps({"query": query, "relevant": ["x"]}, ensure_ascii=False)
        for query in ("猫\u2028耳", "a\x85b")
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert [query.text for query in read_queries(str(path))] == ["猫\u2028耳", "a\x85b"]


def test_baselines_find_what_shares_words_or_characters():
    texts = [
        "【服装】school_uniform - 学生制服",
        "【头发】twintails - 双马尾",
        "【眼睛】hair_over_one_eye - 头发遮住一只眼睛",
    ]
    tags = ["school_uniform", "twintails", "hair_over_one_eye"]
    asked = [Query(text, ("x",), "k") for text in ("学生", "twin tails", "hair one eye", "Ωmega")]
    words, characters = bm25(texts, tags, asked), char_tfidf(texts, tags, asked)
    assert words[0][0] == characters[0][0] == "school_uniform"
    assert characters[1][0] == "twintails"
    assert words[2][0] == characters[2][0] == "hair_over_one_eye"
    assert words[3] == []


def test_many_queries_score_as_one_does():
    chance = np.random.default_rng(1)
    rows = [chance.normal(size=(n, 4)).astype(np.float16) for n in (3, 0, 5, 1)]
    asked = [chance.normal(size=(n, 4)).astype(np.float32) for n in (2, 0, 3)]
    together = max_sim(as_matrices(asked), as_matrices(rows))
    for query, scores in zip(asked, together, strict=True):
        assert np.allclose(scores, max_sim(as_matrices([query]), as_matrices(rows))[0], atol=1e-6)
    assert together[1].tolist() == [0, 0, 0, 0]
    assert together[0][2] == pytest.approx(
        (asked[0] @ rows[2].T.astype(np.float32)).max(1).mean(), abs=1e-5
    )


@pytest.fixture(scope="module")
def index(ray_session, sample_shards, checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "index"
    build(
        BuildConfig(
            str(sample_shards),
            str(path),
            model=str(checkpoint),
            device=Device.CPU,
            precision=Precision.FP32,
        )
    )
    return path


@pytest.mark.ray
def test_ranking_many_is_ranking_one_by_one(index, monkeypatch):
    monkeypatch.setattr("danbooru_index.search.batch.QUERIES_PER_PASS", 3)
    generation = IndexRoot(index).current()
    reader, encode = GenerationReader(generation), QueryEncoder(generation, device=Device.CPU)
    asked = encode(["school uniform", "双马尾", "cat ears", "hair"])
    for mode in Mode:
        for wanted in (Filter(), Filter(nsfw=True)):
            together = rank_many(reader, asked, mode, 20, wanted=wanted)
            for query, rows in zip(asked, together, strict=True):
                alone = rank(reader, query, mode, 20, wanted=wanted).rows
                # a tie at the edge
                assert len(set(rows.tolist()) & set(alone.tolist())) >= len(alone) - 1, mode
                assert rows[:5].tolist() == alone[:5].tolist(), mode


@pytest.mark.ray
def test_the_verb_reports_every_mode_the_baselines_and_the_other_index(
    index, sample, tmp_path, capfd
):
    path = tmp_path / "queries.jsonl"
    lines = [{"query": r["text"], "relevant": [r["tag"]], "kind": "text"} for r in sample[:60]]
    lines += [
        {"query": r["tag"].replace("_", " "), "relevant": [r["tag"]], "kind": "name"}
        for r in sample[:30]
    ]
    lines.append({"query": "nothing", "relevant": ["no_such_tag"], "kind": "name"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = [
        "evaluate",
        str(index),
        str(path),
        "--device",
        "cpu",
        "--against",
        str(index),
        "--ablation",
    ]
    assert main([*words, "--picture", str(tmp_path / "quality.svg"), "--json"]) == 0
    document = json.loads(capfd.readouterr().out.splitlines()[-1])
    systems = {system["name"]: system for system in document["systems"]}
    modes = {mode.value for mode in Mode}
    ablated = {f"hybrid without {part}" for part in ABLATED}
    assert {*ABLATED} >= {"dense", "sparse", "colbert", "names", "transliteration", "popularity"}
    assert systems.keys() == modes | {f"{mode} of {index}" for mode in modes} | ablated | {
        "bm25",
        "char tf-idf",
    }
    assert {systems[name]["counterpart"] for name in ablated} == {"hybrid"}
    weights = Weights(dense=0.0)
    alone = evaluate(
        EvaluateConfig(
            str(index),
            str(path),
            modes=(Mode.HYBRID,),
            weights=weights,
            device=Device.CPU,
            baselines=False,
        )
    )
    assert alone.systems[0].all == systems["hybrid without dense"]["all"]
    assert systems["hybrid without names"]["all"] != systems["hybrid"]["all"]
    assert systems["dense"]["kinds"]["text"]["R@1"][0] > 0.9, "a text finds itself"
    assert systems["dense"]["counterpart"] == f"dense of {index}"
    assert systems["dense"]["better"] == systems["dense"]["worse"] == []
    for mode in modes:
        median, most = systems[mode]["latency_ms"]
        assert 0 < median <= most
    assert systems["bm25"]["latency_ms"] is None
    assert 0 < document["encoding_ms"][0] <= document["encoding_ms"][1]
    assert document["unknown"] == 1
    assert document["queries"] == {"name": 31, "text": 60}
    assert (tmp_path / "quality.svg").stat().st_size > 5000
    report = evaluate(
        EvaluateConfig(
            str(index), str(path), modes=(Mode.SPARSE,), device=Device.CPU, baselines=False
        )
    )
    assert [system.name for system in report.systems] == ["sparse"]
    assert "Recall@10" in report.to_text()
    assert "median / 95th percentile, one at a time: sparse " in report.to_text()
    assert main(["evaluate", str(index), str(path), "--picture", "x.pdf"]) == 2
    assert main(["evaluate", str(index), "/nowhere.jsonl"]) == 1
    assert main(["evaluate", str(index), str(path), "--mode", "dense", "--ablation"]) == 2
    assert main(["evaluate", str(index), str(path), "--weights", "0,0,1", "--ablation"]) == 2
