"""Queries as people send them: any encoding, one line at a time, each answered or refused by
itself.
"""

import json
import subprocess

import pytest
import vault
from checkpoints import Shape, make_checkpoint
from processes import CLI, ROOT

from danbooru_index.errors import UsageError
from danbooru_index.search.hit import Hits, format_hits
from danbooru_index.search.query import (
    LONGEST_QUERY_BYTES,
    checked_query,
    likely_encoding,
    query_lines,
    shortened,
)


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("gb18030", ["猫耳", "双马尾", "穿水手服的女孩", "黑色长发，蓝眼睛", "水", "1girl 猫"]),
        ("big5", ["貓耳", "雙馬尾", "穿水手服的女孩"]),
        ("cp932", ["猫耳", "ツインテール", "セーラー服の女の子"]),
        ("euc_jp", ["ツインテール", "セーラー服の女の子"]),
    ],
)
def test_the_likely_encoding_of_a_short_text(encoding, texts):
    assert [likely_encoding(text.encode(encoding)) for text in texts] == [encoding] * len(texts)


def test_lines_are_cleaned_or_refused_one_by_one():
    lines = [
        "\ufeff猫耳\r\n".encode(),
        b"\n",
        "双马尾\n".encode("gbk"),
        "\u200b\n".encode(),
        b"\xff\xfe\n",
        b"last",
    ]
    found = list(query_lines(lines))
    assert [query for query, _ in found] == ["猫耳", "", "", "", "last"]
    problems = [problem for _, problem in found if problem]
    assert (
        problems[0]
        == "line 3: not UTF-8; it is GB18030, as it seems (双马尾): iconv -f GB18030 -t UTF-8"
    )
    assert problems[1] == "line 4: the query is empty"
    assert problems[2] == "line 5: not UTF-8, nor any other encoding that is known here"


def test_utf_16_is_named_at_once():
    with pytest.raises(UsageError, match="iconv -f UTF-16"):
        list(query_lines(["猫耳\n".encode("utf-16")]))


@pytest.mark.parametrize("blank", ["", "  ", "\u200b\ufeff", "\u3000\n\x00", "\u3164\u2800\ufe0f"])
def test_a_query_of_nothing_that_can_be_seen(blank):
    with pytest.raises(UsageError, match="empty"):
        checked_query(blank)


def test_a_byte_order_mark_is_not_part_of_a_query():
    assert checked_query("\ufeff猫耳") == "猫耳"
    with pytest.raises(UsageError, match="not valid UTF-8"):
        checked_query("\udc80")
    with pytest.raises(UsageError, match=f"at most {LONGEST_QUERY_BYTES:,}: aaaa") as refused:
        checked_query("a" * LONGEST_QUERY_BYTES + "a")
    assert len(str(refused.value)) < 200


def test_a_terminal_gets_one_short_line():
    assert shortened("a" * 60) == "a" * 60
    assert shortened("a" * 61) == "a" * 59 + "…"
    assert shortened("a\x1b[2J\nb\u202eb") == "a [2J b b"
    assert len(format_hits("猫" * 10_000, Hits()).splitlines()[0]) == 60


@pytest.mark.slow
def test_a_session_of_queries_is_answered_line_by_line(tmp_path):
    """Each as it comes, before the next is written; the bad ones by one line each; 1 at the end."""
    model = make_checkpoint(
        tmp_path / "model", Shape(layers=1, hidden=vault.DIM, heads=2, intermediate=32)
    )
    vault.build(tmp_path / "index", vault.shard_names(1), path=str(model))
    command = [*CLI, "search", str(tmp_path / "index"), "-", "--json", "--device", "cpu"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        for query in ("\ufeff猫耳", "sailor"):
            process.stdin.write(f"{query}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["query"] == query.lstrip("\ufeff")
        process.stdin.write("双马尾\n".encode("gbk") + b"x\n")
        out, err = process.communicate(timeout=60)
    assert [json.loads(line)["query"] for line in out.splitlines()] == ["x"]
    assert process.returncode == 1
    assert err.decode().splitlines() == [
        "danbooru-index: line 3: not UTF-8; it is GB18030, as it seems (双马尾): iconv -f GB18030"
        " -t UTF-8"
    ]
