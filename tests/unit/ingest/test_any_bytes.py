"""Bytes of any kind under any name: read and accounted for, or refused in one line."""

import io
import json
import random
import sqlite3
import zipfile

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dumps import DUMPS
from test_preparation import rows_of, run

from danbooru_index.errors import DanbooruIndexError
from danbooru_index.prepare_config import DumpConfig

ANYTHING = DumpConfig(accept_unlikely=True)
SUFFIXES = [
    "csv",
    "tsv",
    "txt",
    "json",
    "jsonl",
    "csv.gz",
    "json.zst",
    "zip",
    "xlsx",
    "db",
    "parquet",
]
QUIETLY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def accounted_for(tmp_path, name, content):
    """Prepare a file; what it said, if it was refused."""
    path = tmp_path / name
    path.write_bytes(content)
    report = refused = None
    try:
        report, out = run(tmp_path, path, dump=ANYTHING)
    except DanbooruIndexError as error:
        refused = str(error)
    if report is None:
        assert "\n" not in refused
        return refused
    assert report.read == report.records + sum(report.rejected.values())
    rows = rows_of(out)
    assert len({row["id"] for row in rows}) == len(rows) == report.records > 0
    assert report.to_text()
    json.dumps(report.to_dict())
    return ""


@QUIETLY
@given(st.binary(max_size=60), st.sampled_from(SUFFIXES))
def test_any_bytes(tmp_path, content, suffix):
    accounted_for(tmp_path, f"a.{suffix}", content)


CELLS = st.sampled_from(
    ["", "0", "5", "1girl", "猫耳", "a,b", '"', '"x"', "nan", "-1", "9" * 30, " ", "\r"]
)


@QUIETLY
@given(
    st.lists(st.lists(CELLS, max_size=5), max_size=6),
    st.sampled_from(",;\t|"),
    st.sampled_from(["", "name", "tag,zh", "id;name;count", "\ufefftag\tnsfw\trating"]),
    st.sampled_from(["csv", "tsv", "txt"]),
)
def test_any_table(tmp_path, rows, delimiter, header, suffix):
    lines = [header, *(delimiter.join(row) for row in rows)]
    accounted_for(tmp_path, f"a.{suffix}", "\n".join(lines).encode())


VALUES = st.recursive(
    st.sampled_from([None, True, 0, 7, -1.5, "", "1girl", "猫", "e", "\ud800", "NaN"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "name", "text", "tag", "category", "aliases", "nsfw", "rating", "zh"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@QUIETLY
@given(st.lists(VALUES, max_size=4), st.sampled_from(["json", "jsonl"]), st.booleans())
def test_any_json(tmp_path, values, suffix, a_line_each):
    text = "\n".join(map(json.dumps, values)) if a_line_each else json.dumps(values, indent=1)
    accounted_for(tmp_path, f"a.{suffix}", text.encode())


@pytest.mark.parametrize("kind", DUMPS)
def test_good_dumps_damaged_at_any_place(tmp_path, kind):
    name, content, _ = DUMPS[kind]
    whole, rng = content.encode(), random.Random(kind)
    for _ in range(12):
        damaged = bytearray(whole)
        at = rng.randrange(len(damaged))
        if rng.random() < 0.4:
            del damaged[at:]
        elif rng.random() < 0.5:
            damaged[at] ^= 1 << rng.randrange(8)
        else:
            damaged[at:at] = rng.choice([b'"', b"\n", b",", b"\0", b"\xff", b"{", b"]"])
        accounted_for(tmp_path, name, bytes(damaged))


def test_containers_damaged_at_any_place(tmp_path):
    """A workbook, a database, a zip: what their libraries raise never reaches the user."""
    book = openpyxl.Workbook()
    book.active.append(["tag", "zh"])
    book.active.append(["water", "水"])
    book.save(tmp_path / "whole.xlsx")
    with sqlite3.connect(tmp_path / "whole.db") as database:
        database.execute("create table tags (name text, count integer)")
        database.executemany("insert into tags values (?, ?)", [(f"t{n}", n) for n in range(500)])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("tags.csv", "water,水\n" * 99)
    (tmp_path / "whole.zip").write_bytes(archive.getvalue())
    rng = random.Random(0)
    for suffix in ("xlsx", "db", "zip"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        assert accounted_for(tmp_path, f"good.{suffix}", whole) == ""
        for _ in range(25):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 20])):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            accounted_for(tmp_path, f"a.{suffix}", bytes(damaged[: rng.choice([None, -40, 300])]))
