"""A record: what is taken from where, and every reason for rejecting one."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danbooru_index.config import MAX_TEXT_BYTES
from danbooru_index.errors import InputError
from danbooru_index.ingest.fields import parse_fields, parse_line
from danbooru_index.ingest.scan import scan
from danbooru_index.ingest.shards import read_shard, to_table
from danbooru_index.records import Reason, Record, RejectedError, parse_text


@pytest.mark.parametrize(
    ("text", "category", "tag", "explanation"),
    [
        (
            "【服装】school_uniform - 学生制服。包括水手服、西式制服等",
            "服装",
            "school_uniform",
            "学生制服。包括水手服、西式制服等",
        ),
        ("【画师】rumil", "画师", "rumil", ""),
        ("【通用】a - b - c", "通用", "a", "b - c"),
        ("【通用】-_-", "通用", "-_-", ""),
        ("【通用】-_- - 无语", "通用", "-_-", "无语"),
        ("just_a_tag - explained", "", "just_a_tag", "explained"),
        (r"【通用】\||/", "通用", r"\||/", ""),
    ],
)
def test_text_is_split_at_its_first_dash(text, category, tag, explanation):
    parts = parse_text(text)
    assert (parts.category, parts.tag, parts.explanation) == (category, tag, explanation)


def test_fields_win_over_the_text_and_the_text_is_never_altered():
    text = "【服装】 school_uniform - 学生制服 "
    record = parse_fields(
        {
            "id": 2,
            "text": text,
            "tag": "uniform",
            "category": "c",
            "post_count": "12",
            "aliases": "a, b",
        }
    )
    assert record.text == text
    assert (record.id, record.tag, record.category, record.explanation) == (
        "2",
        "uniform",
        "c",
        "学生制服",
    )
    assert (record.post_count, record.aliases) == (12, ("a", "b"))


def test_optional_fields_are_also_found_in_metadata():
    record = parse_fields(
        {
            "id": "1",
            "text": "x",
            "metadata": {"post_count": 7, "rating": "e", "category": "general"},
        }
    )
    assert (record.post_count, record.category, record.nsfw) == (7, "general", True)


@pytest.mark.parametrize(
    ("fields", "nsfw"),
    [
        ({}, False),
        ({"nsfw": True}, True),
        ({"nsfw": False, "rating": "e"}, False),
        ({"rating": "q"}, True),
        ({"rating": "s"}, False),
        ({"category": "NSFW"}, True),
        ({"nsfw": False, "category": "NSFW"}, False),
    ],
)
def test_nsfw_is_the_inputs_else_the_ratings_else_the_categorys(fields, nsfw):
    assert parse_fields({"id": "1", "text": "x", **fields}).nsfw is nsfw


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", Reason.UNPARSABLE_LINE),
        ("[" * 100_000, Reason.UNPARSABLE_LINE),
        ('["a"]', Reason.UNPARSABLE_LINE),
        ('{"text": "x"}', Reason.MISSING_ID),
        ('{"id": null, "text": "x"}', Reason.MISSING_ID),
        ('{"id": " ", "text": "x"}', Reason.EMPTY_ID),
        ('{"id": "1"}', Reason.MISSING_TEXT),
        ('{"id": "1", "text": "  "}', Reason.EMPTY_TEXT),
        ('{"id": "1", "text": 5}', Reason.WRONG_TYPE),
        ('{"id": 1.5, "text": "x"}', Reason.WRONG_TYPE),
        ('{"id": true, "text": "x"}', Reason.WRONG_TYPE),
        ('{"id": "1", "text": "x", "post_count": "many"}', Reason.WRONG_TYPE),
        ('{"id": "1", "text": "x", "post_count": 99999999999999999999}', Reason.WRONG_TYPE),
        ('{"id": "1", "text": "x", "aliases": [1]}', Reason.WRONG_TYPE),
        ('{"id": "1", "text": "x", "nsfw": "maybe"}', Reason.WRONG_TYPE),
        ('{"id": "1", "text": "\\ud800"}', Reason.INVALID_UNICODE),
        ('{"id": "\\udfff", "text": "x"}', Reason.INVALID_UNICODE),
        (json.dumps({"id": "1", "text": "字" * (MAX_TEXT_BYTES // 3 + 1)}), Reason.TEXT_TOO_LONG),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else str(value)[:30],
)
def test_every_reason_for_rejecting(line, reason):
    with pytest.raises(RejectedError) as error:
        parse_line(line)
    assert error.value.reason is reason


def test_a_text_of_just_the_limit_is_accepted():
    assert (
        len(parse_line(json.dumps({"id": 1, "text": "x" * MAX_TEXT_BYTES})).text) == MAX_TEXT_BYTES
    )


def test_a_category_by_danboorus_number():
    assert parse_fields({"id": 1, "text": "x", "category": 4}).category == "character"
    assert parse_fields({"id": 1, "text": "x", "category": "4"}).category == "4"


def test_missing_values_as_pandas_writes_them():
    assert (
        parse_line('{"id": "1", "text": "x", "post_count": NaN, "aliases": NaN}').post_count is None
    )


@pytest.mark.parametrize(
    "name", ["2023", "nil", "inf", "11e10", "^_^", r"\||/", '"love"', "=3", "+++", "-_-", "@_@"]
)
def test_dirty_names_survive(name):
    assert parse_line(json.dumps({"id": name, "text": f"【通用】{name}"})).tag == name


@pytest.mark.parametrize(
    "invisible", ["\u200b", "\ufeff\u2060", "\u3164", "\x00\x1f", "\u2800\ufe0f\u00ad"]
)
def test_a_text_of_which_nothing_can_be_seen_is_empty(invisible, tmp_path):
    """Also in a Parquet file that is otherwise as `prepare` writes it, whose rows are not parsed
    one by one.
    """
    with pytest.raises(RejectedError, match="empty_text"):
        parse_fields({"id": 1, "text": invisible})
    with pytest.raises(RejectedError, match="empty_id"):
        parse_fields({"id": invisible, "text": "a"})
    rows = to_table([Record("1", "猫\u200b耳"), Record("2", invisible)])
    pq.write_table(rows, tmp_path / "a.parquet")
    records, rejects = read_shard(scan(str(tmp_path)).shards[0])
    assert records["text"].to_pylist() == ["猫\u200b耳"]
    assert [(reject.line, reject.reason.value) for reject in rejects] == [(2, "empty_text")]


@pytest.mark.parametrize(
    ("fields", "nsfw"),
    [
        ({"metadata": '{"nsfw": true}'}, True),
        ({"metadata": [("nsfw", True)]}, True),
        ({"metadata": "a note"}, False),
        ({"metadata": ""}, False),
        ({"rating": "rating:explicit"}, True),
        ({"rating": "R-18"}, True),
        ({"rating": "sensitive"}, False),
        ({"metadata": {"rating": "q"}}, True),
    ],
)
def test_what_is_not_safe_is_found_in_every_form_of_metadata_and_rating(fields, nsfw):
    assert parse_fields({"id": 1, "text": "a", **fields}).nsfw is nsfw


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": "{broken"},
        {"metadata": 3},
        {"metadata": [({"x": 1}, 2)]},
        {"metadata": [("nsfw", True), ("nsfw", False)]},
        {"rating": "unheard of"},
        {"rating": 5},
        {"post_count": Decimal("1.5")},
        {"post_count": 1.5},
    ],
)
def test_a_value_that_may_mean_anything_is_rejected(fields):
    with pytest.raises(RejectedError, match="wrong_type"):
        parse_fields({"id": 1, "text": "a", **fields})
    assert parse_fields({"id": 1, "text": "a", "post_count": Decimal("3.0")}).post_count == 3


def test_a_name_that_occurs_twice_is_not_one_of_its_values():
    with pytest.raises(RejectedError, match="the name 'nsfw' occurs twice"):
        parse_line('{"id": 1, "text": "a", "nsfw": true, "nsfw": false}')


def test_two_columns_of_one_name_are_refused_by_build_as_by_prepare(tmp_path):
    rows = pa.table(
        [pa.array(["1"]), pa.array(["a"]), pa.array(["x"]), pa.array(["y"])],
        ["id", "text", "tag", "tag"],
    )
    pq.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two columns are called tag"):
        scan(str(tmp_path))


def test_a_missing_alias_in_rows_as_prepare_writes_them_is_noticed(tmp_path):
    rows = to_table([Record("1", "a"), Record("2", "b", aliases=("x",))])
    place = rows.schema.get_field_index("aliases")
    rows = rows.set_column(
        place, rows.schema.field(place), pa.array([["y", None], ["x"]], pa.list_(pa.string()))
    )
    pq.write_table(rows, tmp_path / "a.parquet")
    records, rejects = read_shard(scan(str(tmp_path)).shards[0])
    assert records["id"].to_pylist() == ["2"]
    assert [reject.reason.value for reject in rejects] == ["wrong_type"]
