"""Training pairs: what is asked for a record, what is left out, which negatives are drawn."""

import gzip
import json
import math

import numpy as np
import pytest
import zstandard

from danbooru_index.errors import InputError, UsageError
from danbooru_index.records import Record
from danbooru_index.search.retriever import EncodedQuery
from danbooru_index.training import negatives, pairs
from danbooru_index.training.finetune import finetune
from danbooru_index.training.finetune_config import FinetuneConfig
from danbooru_index.training.negatives import Mining, add_negatives
from danbooru_index.training.pairs import (
    Pair,
    check_held_out,
    make_pairs,
    normal,
    read_names,
    read_training_data,
)

TWINTAILS = Record(
    "1",
    "【头发】twin_tails - 双马尾，两条马尾",
    tag="twin_tails",
    aliases=("pigtails", "Twin Tails"),
)


def test_a_record_is_asked_for_by_every_name_it_has_once():
    pairs = {
        pair.query: pair.pos
        for pair in make_pairs([TWINTAILS], {"twin_tails": ["ツインテール"]}, [])
    }
    whole, short = TWINTAILS.text, "【头发】twin_tails"
    assert pairs == {
        "twin tails": [whole, short],  # and not `Twin Tails` again
        "pigtails": [whole, short],
        "双马尾，两条马尾": [short],  # from its tag, not from a copy of itself
        "双马尾": [short],
        "两条马尾": [short],
        "ツインテール": [whole, short],
    }


@pytest.mark.parametrize("spelling", ["PigTails", "pig tails", "pig_tails", "ｐｉｇtails"])
def test_a_held_out_query_is_left_out_in_any_spelling(spelling):
    queries = [pair.query for pair in make_pairs([TWINTAILS], {}, [normal(spelling)])]
    assert queries
    assert "pigtails" not in queries


def test_the_last_look_finds_a_held_out_query():
    check_held_out([Pair("pigtails", ["x"])], ["twintails"])
    with pytest.raises(InputError, match="'Pig_Tails' is among the training pairs"):
        check_held_out([Pair("Pig_Tails", ["x"])], ["pigtails"])


def test_a_pairs_file_is_read_as_it_is_and_a_dump_is_made_into_pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"query": "a", "pos": ["x"], "neg": ["y"]}\n\n{"query": "B", "pos": ["z"], "type":'
        ' "normal"}\n'
    )
    assert read_training_data(str(file), {}, ["b"]) == [Pair("a", ["x"], ["y"])]
    dump = tmp_path / "tags.jsonl"
    dump.write_text(
        json.dumps({"id": "1", "text": "【头发】ahoge", "tag": "ahoge", "aliases": ["呆毛"]}) + "\n"
    )
    assert [pair.query for pair in read_training_data(str(dump), {}, [])] == ["ahoge", "呆毛"]


def test_a_compressed_pairs_file_is_read_as_dumps_are(tmp_path):
    content = b'\xef\xbb\xbf{"query": "a", "pos": ["x"]}\n'
    for name, compress in (("p.jsonl.gz", gzip.compress), ("p.jsonl.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(compress(content))
        assert read_training_data(str(tmp_path / name), {}, []) == [Pair("a", ["x"])]


@pytest.mark.parametrize(
    "line",
    ['{"query": "a"}', "[]", "no json", '{"query": "a", "pos": []}', '{"query": "a", "pos": "x"}',
     '{"query": 1, "pos": ["x"]}', '{"query": "a", "pos": ["x"], "neg": "y"}', '{"query": " ", "pos": ["x"]}'],
)  # fmt: skip
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "a", "pos": ["x"]}\n' + line + "\n")
    with pytest.raises(InputError, match=r"pairs\.jsonl:2: "):
        read_training_data(str(file), {}, [])


def test_nothing_to_train_on_is_said(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "a", "pos": ["x"]}\n')
    with pytest.raises(InputError, match="no pair to train on"):
        read_training_data(str(file), {}, ["A"])


def test_what_would_train_on_something_else_is_refused(tmp_path, monkeypatch):
    """Names beside a pairs file, a text both right and wrong, a dump of broken lines; a few of them
    are said.
    """
    file = tmp_path / "pairs.NDJSON"
    file.write_text('{"query": "a", "pos": ["x"]}\n')
    assert read_training_data(str(file), {}, []) == [Pair("a", ["x"])]
    with pytest.raises(InputError, match="to which --names add nothing"):
        read_training_data(str(file), {"a": ["b"]}, [])
    file.write_text('{"query": "a", "pos": ["x"], "neg": ["x"]}\n')
    with pytest.raises(InputError, match=r"both right .pos. and wrong"):
        read_training_data(str(file), {}, [])
    dump = tmp_path / "tags.jsonl"
    dump.write_text('{"id": 1, "text": "ahoge", "aliases": "a,b"}\n' + "broken\n" * 50)
    with pytest.raises(
        InputError,
        match=r"50 of its lines cannot be read; the first: .*tags.jsonl:2 unparsable_line",
    ):
        read_training_data(str(dump), {}, [])
    dump.write_text('{"id": 1, "text": "ahoge", "aliases": "a,b"}\nbroken\n')
    said = []
    monkeypatch.setattr(pairs.log, "warning", said.append)
    assert len(read_training_data(str(dump), {}, [])) == 3
    assert "1 lines left out; the first:" in said[0]


def test_fields_of_a_record_are_not_names(tmp_path):
    (tmp_path / "n.jsonl").write_text(
        '{"tag": "maid", "ja": "メイド", "source": "wiki", "category": "general"}\n'
    )
    assert read_names([str(tmp_path / "n.jsonl")]) == {"maid": ["メイド"]}
    (tmp_path / "n.jsonl").write_text('{"tag": null, "ja": "メイド"}\n')
    with pytest.raises(InputError, match="tag is None, not a text"):
        read_names([str(tmp_path / "n.jsonl")])


def test_names_of_several_files_and_fields_come_together(tmp_path):
    with gzip.open(tmp_path / "ja.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"tag": "ahoge", "ja": "アホ毛"}\n')
    (tmp_path / "zh.jsonl").write_text(
        '{"tag": "ahoge", "zh": ["呆毛", "傻毛"], "count": 3}\n', encoding="utf-8"
    )
    assert read_names([str(tmp_path / "ja.jsonl.gz"), str(tmp_path / "zh.jsonl")]) == {
        "ahoge": ["アホ毛", "呆毛", "傻毛"]
    }
    (tmp_path / "bad.jsonl").write_text('{"ja": "アホ毛"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.jsonl:1: needs"):
        read_names([str(tmp_path / "bad.jsonl")])


class Texts:
    """The one thing that mining asks a reader for; the answers come from `rank_many`, which is
    replaced below.
    """

    def __init__(self, texts):
        self._texts = texts

    def texts(self):
        return self._texts


def test_negatives_come_from_the_ranks_asked_for_and_are_never_a_positive(monkeypatch):
    texts = [f"t{i}" for i in range(100)]
    texts[3] = "t0 - the same tag, explained"
    monkeypatch.setattr(
        negatives, "rank_many", lambda _r, queries, _m, last, **_: [np.arange(last)] * len(queries)
    )
    pairs = [Pair("a", ["t0"]), Pair("A", ["t5"]), Pair("b", ["t1"], ["given"])]
    done = []
    encode = [EncodedQuery(np.zeros(1), {}, np.zeros((1, 1)))].__mul__
    mining = Mining(7, ranks=(2, 20), share=0.7, seed=1)
    add_negatives(pairs, lambda queries: encode(len(queries)), Texts(texts), mining, done.append)
    assert sum(done) == 3
    hard = {f"t{i}" for i in range(1, 20)} | {texts[3]}
    for pair, forbidden in zip(
        pairs, [{"t0", "t5", texts[3]}, {"t0", "t5", texts[3]}, {"t1"}], strict=True
    ):
        assert len(pair.neg) == 7
        assert not forbidden & set(pair.neg)
    assert sum(text in hard for text in pairs[0].neg) >= 5  # 70% of 7; the others at random
    assert any(text not in hard for pair in pairs for text in pair.neg if text != "given")
    assert pairs[2].neg[0] == "given"


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": math.inf},
        {"lr": 1e6},
        {"lr": math.nan},
        {"temperature": 1e-300},
        {"epochs": math.inf},
        {"query_length": 0},
        {"passage_length": -3},
        {"seed": -1},
        {"seed": 2**70},
    ],
    ids=repr,
)
def test_settings_that_no_training_survives_are_wrong_usage(wrong):
    """Some ended as tensors of NaN, with exit 0 and "found 100%"; others as a library's error in a
    worker.
    """
    with pytest.raises(UsageError):
        FinetuneConfig("pairs.jsonl", "out", model="m", **wrong)


def test_a_length_beyond_the_model_and_a_mistyped_path_bind_nobody(tmp_path, checkpoint):
    """The right command after a wrong one is not "an unfinished training with other settings"."""
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="takes at most 8192 tokens"):
        finetune(FinetuneConfig("x.jsonl", out, model=str(checkpoint), passage_length=9000))
    with pytest.raises(InputError, match="no such file"):
        finetune(FinetuneConfig(str(tmp_path / "x.jsonl"), out, model=str(checkpoint)))
    bad = tmp_path / "pairs.jsonl"
    for content in ('{"query": "a", "pos": []}\n', '{"query": "a", "pos": 3}\n'):
        bad.write_text('{"query": "b", "pos": ["x"]}\n' + content)
        with pytest.raises(InputError, match=r"pairs.jsonl:2"):
            finetune(FinetuneConfig(str(bad), out, model=str(checkpoint), group_size=1))
