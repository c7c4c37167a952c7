"""What is not safe for work: the dump's own marks, a list, else words; never silently nothing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_preparation import rows_of, run

from danbooru_index.errors import InputError
from danbooru_index.ingest.nsfw import is_nsfw_by_words
from danbooru_index.ingest.scan import scan
from danbooru_index.ingest.shards import read_shard
from danbooru_index.prepare_config import DumpConfig

UNRATED = "nude,0,9,\nschool_uniform,0,8,\ncockpit,0,7,\nessex_(azur_lane),4,6,\nsex,0,5,\n"


def marked(out):
    return [row["id"] for row in rows_of(out) if row["nsfw"]]


@pytest.mark.parametrize(
    "tag", ["sex", "nude", "completely_nude", "group sex", "sex_toy", "cum_on_body", "Nipples"]
)
def test_tags_with_such_words(tag):
    assert is_nsfw_by_words(tag, "general")


@pytest.mark.parametrize(
    ("tag", "category"),
    [
        ("cockpit", "general"),
        ("essex_(azur_lane)", "character"),
        ("grass", "general"),
        ("knife_sheath", "general"),
        ("poke_ball", "general"),
        ("sex_pistols", "artist"),
        ("moby_dick", "copyright"),
        ("christmas_balls", "general"),
        ("^_^", ""),
    ],
)
def test_tags_that_stay(tag, category):
    assert not is_nsfw_by_words(tag, category)


def test_a_dump_without_ratings_is_marked_by_words(tmp_path):
    (tmp_path / "a.csv").write_text(UNRATED)
    report, out = run(tmp_path, tmp_path / "a.csv")
    assert marked(out) == ["nude", "sex"]
    assert (report.nsfw_marks, dict(report.nsfw)) == ("words", {"words": 2})
    assert "not safe for work: 2 by words" in report.to_text()
    assert scan(str(out)).nsfw_marks == "words"


def test_words_can_be_left_out_and_the_index_will_say_so(tmp_path):
    (tmp_path / "a.csv").write_text(UNRATED)
    report, out = run(tmp_path, tmp_path / "a.csv", dump=DumpConfig(nsfw_words=False))
    assert (marked(out), report.nsfw_marks) == ([], "no ratings")
    assert scan(str(out)).nsfw_marks == "no ratings"
    assert "is not marked by words" in report.to_text()


@pytest.mark.parametrize(
    ("header", "values"), [("nsfw", ("1", "0")), ("rating", ("e", "g")), ("R18", ("yes", "no"))]
)
def test_a_dump_that_rates_its_tags_is_believed(tmp_path, header, values):
    rows = f"name,{header}\nhand_holding,{values[0]}\nnude,{values[1]}\n"
    (tmp_path / "a.csv").write_text(rows)
    report, out = run(tmp_path, tmp_path / "a.csv")
    assert marked(out) == ["hand_holding"]
    assert (report.nsfw_marks, dict(report.nsfw)) == ("input", {"input": 1})


def test_a_rating_late_in_the_dump_takes_the_marks_by_words_back(tmp_path):
    lines = [{"id": n, "text": f"【a】{tag}"} for n, tag in enumerate(["nude", "sex", "solo"])]
    lines.append({"id": 9, "text": "x", "rating": "e"})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report, out = run(tmp_path, path)
    assert (marked(out), report.nsfw_marks) == (["9"], "input")
    lines[-1] = {"id": 9, "text": "x", "metadata": {"nsfw": True}}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert marked(run(tmp_path, path)[1]) == ["9"]


def test_a_list_of_tags(tmp_path):
    (tmp_path / "a.csv").write_text(UNRATED)
    (tmp_path / "list.txt").write_text("School Uniform\nunknown\n")
    dump = DumpConfig(nsfw_tags=(str(tmp_path / "list.txt"),))
    report, out = run(tmp_path, tmp_path / "a.csv", dump=dump)
    assert marked(out) == ["nude", "school_uniform", "sex"]
    assert dict(report.nsfw) == {"words": 2, "list": 1}
    assert report.nsfw_marks == "list+words"
    for listed in ("nude, school uniform, sex\n", "tag,nsfw\nschool_uniform,1\ncockpit,0\n"):
        (tmp_path / "list.txt").write_text(listed)
        assert marked(run(tmp_path, tmp_path / "a.csv", dump=dump)[1]) == [
            "nude",
            "school_uniform",
            "sex",
        ]
    (tmp_path / "list.txt").write_text("tag,nsfw\nschool_uniform,perhaps\n")
    with pytest.raises(InputError, match="nsfw is 'perhaps', not true or false"):
        run(tmp_path, tmp_path / "a.csv", dump=dump)
    (tmp_path / "list.txt").write_text("other\n")
    with pytest.raises(InputError, match="names none of these 5 tags"):
        run(tmp_path, tmp_path / "a.csv", dump=dump)
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(InputError, match=r"list\.txt: empty"):
        run(tmp_path, tmp_path / "a.csv", dump=dump)


def test_parquet_that_nobody_prepared(tmp_path):
    table = pa.table({"id": ["1", "2"], "text": ["【general】nude", "【general】solo"]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = scan(str(tmp_path / "a.parquet"))
    assert found.nsfw_marks == "words"
    assert read_shard(found.shards[0])[0]["nsfw"].to_pylist() == [True, False]
    plain = scan(str(tmp_path / "a.parquet"), nsfw_words=False)
    assert plain.nsfw_marks == "no ratings"
    assert read_shard(plain.shards[0])[0]["nsfw"].to_pylist() == [False, False]
    assert plain.digest != found.digest  # a build of the one cannot go on with the other
    pq.write_table(table.append_column("rating", pa.array(["g", "e"])), tmp_path / "b.parquet")
    rated = scan(str(tmp_path / "b.parquet"))
    assert rated.nsfw_marks == "input"
    assert read_shard(rated.shards[0])[0]["nsfw"].to_pylist() == [False, True]
