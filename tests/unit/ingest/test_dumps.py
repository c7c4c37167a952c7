"""Any tag dump: read as its owner means it, or refused by one line that says what to add."""

import gzip
import json
import sqlite3
import zipfile

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_preparation import rows_of, run

from danbooru_index.errors import InputError, UsageError
from danbooru_index.prepare_config import DumpConfig


def prepared(tmp_path, name, content, code="utf-8", **options):
    """(id, text, category, post_count) of each record of a dump."""
    path = tmp_path / name
    path.write_bytes(content.encode(code) if isinstance(content, str) else content)
    report, out = run(tmp_path, path, **options)
    rows = rows_of(out)
    return report, [(r["id"], r["text"], r["category"], r["post_count"]) for r in rows], rows


DUMPS = {
    "tag and translation": (
        "a.csv",
        "1girl,一个女孩\ncat_ears,猫耳\n",
        [("1girl", "1girl - 一个女孩", "", None), ("cat_ears", "cat_ears - 猫耳", "", None)],
    ),
    "translation and tag": (
        "a.csv",
        "长发,long_hair\n校服,school_uniform\n",
        [("long_hair", "long_hair - 长发", "", None), ("school_uniform", "school_uniform - 校服", "", None)],
    ),
    "a header of languages": ("a.csv", "en,zh\nwater,水\n", [("water", "water - 水", "", None)]),
    "a header in Chinese": (
        "a.csv",
        "中文,数量,标签,分类\n水,7,water,0\n",
        [("water", "【general】water - 水", "general", 7)],
    ),
    "a header in Japanese": (
        "a.csv",
        "タグ,日本語,件数\nwater,水,7\n",
        [("water", "water - 水", "", 7)],
    ),
    "the name under a name that may mean its translation": (
        "a.csv",
        "名称,翻译\nwater,水\n",
        [("water", "water - 水", "", None)],
    ),
    "columns in another order": (
        "a.csv",
        "tag,count,category\n1girl,6008644,0\nmiku,110,4\n",
        [("1girl", "【general】1girl", "general", 6008644), ("miku", "【character】miku", "character", 110)],
    ),
    "columns in another order without a header": (
        "a.csv",
        "1girl,6008644,0\nhatsune_miku,110,4\n",
        [
            ("1girl", "【general】1girl", "general", 6008644),
            ("hatsune_miku", "【character】hatsune_miku", "character", 110),
        ],
    ),
    "semicolons around aliases with commas": (
        "a.csv",
        "1girl;0;600;1girls,sole_female\nsolo;0;500;female_solo,alone\n",
        [
            ("1girl", "【general】1girl - sole female", "general", 600),
            ("solo", "【general】solo - female solo, alone", "general", 500),
        ],
    ),
    "tabs, and a quote of the tag's own": (
        "a.csv",
        '"love"_live!\t3\t5\nsolo\t0\t9\n',
        [
            ('"love"_live!', '【copyright】"love"_live!', "copyright", 5),
            ("solo", "【general】solo", "general", 9),
        ],
    ),
    "the line by which Excel knows the delimiter": (
        "a.csv",
        "sep=;\nname;count\na,b;7\n",
        [("a,b", "a,b", "", 7)],
    ),
    "comments before the table, and a tag that begins with #": (
        "a.csv",
        "# from a site\n# 2026\n#tag,count\n#compass,7\nsolo,5\n",
        [("#compass", "#compass", "", 7), ("solo", "solo", "", 5)],
    ),
    "line ends of old Macs": (
        "a.csv",
        "1girl,0,6,\rsolo,0,5,\r",
        [("1girl", "【general】1girl", "general", 6), ("solo", "【general】solo", "general", 5)],
    ),
    "line ends of Windows": (
        "a.csv",
        "name,zh\r\nwater,水\r\n\r\n",
        [("water", "water - 水", "", None)],
    ),
    "a header of which one name is known": (
        "a.csv",
        "tag,traduction\nwater,une chose claire\nfire,une chose chaude\n",
        [
            ("water", "water - une chose claire", "", None),
            ("fire", "fire - une chose chaude", "", None),
        ],
    ),
    "a header in Korean": ("a.csv", "태그,번역\nwater,물\n", [("water", "water - 물", "", None)]),
    "a header with brackets": (
        "a.csv",
        "Tag (EN),中文 (CN)\nwater,水\n",
        [("water", "water - 水", "", None)],
    ),
    "one column and its header": ("a.csv", "英文标签\nwater\n", [("water", "water", "", None)]),
    "two headers": (
        "a.csv",
        "tag,category,zh\n标签,分类,中文\nwater,0,水\n",
        [("water", "【general】water - 水", "general", None)],
    ),
    "a table of Markdown": (
        "a.txt",
        "| tag | 翻译 |\n|---|---|\n| water | 水 |\n",
        [("water", "water - 水", "", None)],
    ),
    "a header over two lines": (
        "a.csv",
        'tag,"中文\n翻译",count\nwater,水,99\nfire,火,98\n',
        [("water", "water - 水", "", 99), ("fire", "fire - 火", "", 98)],
    ),
    "categories as decimals": (
        "a.csv",
        "id,name,category,post_count\n1,mammal,5.0,30\n2,wolf,5.0,20\n3,x,,1\n",
        [("1", "【species】mammal", "species", 30), ("2", "【species】wolf", "species", 20), ("3", "x", "", 1)],
    ),
    "categories in Chinese": (
        "a.csv",
        "1girl,通用,600\nhatsune_miku,角色,500\n",
        [("1girl", "【通用】1girl", "通用", 600), ("hatsune_miku", "【角色】hatsune_miku", "角色", 500)],
    ),
    "what databases and pandas write for nothing": (
        "a.csv",
        "tag,category,zh,aliases,count\na,general,NaN,nan,6\nnull,NULL,NULL,NULL,NULL\nb,,\\N,\\N,\\N\n",
        [("a", "【general】a", "general", 6), ("null", "null", "", None), ("b", "b", "", None)],
    ),
    "lists that pandas wrote as text": (
        "a.csv",
        "tag,aliases\nwater,\"['agua', 'eau claire']\"\nfire,[]\n",
        [("water", "water - agua, eau claire", "", None), ("fire", "fire", "", None)],
    ),
    "arrays of Postgres": (
        "a.csv",
        'tag,aliases\nwater,"{agua,""eau, claire""}"\nfire,{}\n',
        [("water", "water - agua, eau, claire", "", None), ("fire", "fire", "", None)],
    ),
    "dates, addresses and truth beside the counts": (
        "a.csv",
        "water,0,600,2024-01-01,false,https://x.example/1\nfire,0,500,2024-01-02,true,https://x.example/2\n",
        [("water", "【general】water", "general", 600), ("fire", "【general】fire", "general", 500)],
    ),
    "spaces around cells": (
        "a.csv",
        "category, tag, count\n0, water, 600\n",
        [("water", "【general】water", "general", 600)],
    ),
    "JSON by another name": (
        "a.txt",
        '[\n {\n "name": "water", "category": 0}\n]',
        [("water", "【general】water", "general", None)],
    ),
    "a page inside a page": (
        "a.json",
        '{"data": {"tags": [{"name": "water", "count": 5}], "next": null}}',
        [("water", "water", "", 5)],
    ),
    "a map in which a tag is called items": (
        "a.json",
        '{"water": ["水"], "items": ["物品"], "fire": ["火"]}',
        [("water", "water - 水", "", None), ("items", "items - 物品", "", None), ("fire", "fire - 火", "", None)],
    ),
    "objects over several lines, as jq prints them": (
        "a.json",
        '{\n "name": "water",\n "post_count": 7\n}\n{\n "name": "fire",\n "post_count": 5\n}\n',
        [("water", "water", "", 7), ("fire", "fire", "", 5)],
    ),
    "one record over several lines": (
        "a.json",
        '{\n "id": "1",\n "text": "【服装】a - 甲"\n}\n',
        [("1", "【服装】a - 甲", "服装", None)],
    ),
    "a map of names to counts as texts": (
        "a.json",
        '{"water": "600", "fire": "500"}',
        [("water", "water", "", 600), ("fire", "fire", "", 500)],
    ),
    "a map of names to categories": (
        "a.json",
        '{"water": "general", "hatsune_miku": "character"}',
        [
            ("water", "【general】water", "general", None),
            ("hatsune_miku", "【character】hatsune_miku", "character", None),
        ],
    ),
    "wiki pages in a table": (
        "a.csv",
        "id,title,body,other_names,is_deleted\n1,water,Wet.,水,\n2,help:home,x,,\n3,about:us,x,,\n",
        [("water", "water - 水, Wet.", "", None)],
    ),
    "numbers and nothing among names": (
        "a.jsonl",
        '{"name": "sixty", "zh": 69, "aliases": [null, "heure", 6]}\n',
        [("sixty", "sixty - 69, heure", "", None)],
    ),
    "pipes": ("a.csv", "tag|count\nsolo|9\n", [("solo", "solo", "", 9)]),
    "thousands": (
        "a.csv",
        'name,category,post_count\n1girl,0,"6,008,644"\n',
        [("1girl", "【general】1girl", "general", 6008644)],
    ),
    "ids": (
        "a.csv",
        "id,name,category,post_count\n12054,high_res,5,45\n",
        [("12054", "【meta】high_res", "meta", 45)],
    ),
    "ids without a header": (
        "a.csv",
        "12054,high_res,5,45\n24814,1girl,0,44\n",
        [("12054", "【meta】high_res", "meta", 45), ("24814", "【general】1girl", "general", 44)],
    ),
    "a description": (
        "a.csv",
        "name,category,post_count,description\n1girl,0,6,one female character. And more.\n",
        [("1girl", "【general】1girl - one female character.", "general", 6)],
    ),
    "words where the count is, and empty columns": (
        "a.csv",
        "masterpiece,5,Quality tag,,\nbest_quality,5,Quality tag,,\n",
        [
            ("masterpiece", "【meta】masterpiece - Quality tag", "meta", None),
            ("best_quality", "【meta】best_quality - Quality tag", "meta", None),
        ],
    ),
    "names only": ("a.csv", "1girl\nsolo\n", [("1girl", "1girl", "", None), ("solo", "solo", "", None)]),
    "names only, a quote and commas in them": (
        "a.txt",
        '"o"\nschool_uniform\ni_can\'t,_she_said\n',
        [
            ('"o"', '"o"', "", None),
            ("school_uniform", "school_uniform", "", None),
            ("i_can't,_she_said", "i_can't,_she_said", "", None),
        ],
    ),
    "a quoted cell of two lines": (
        "a.csv",
        'name,wiki,post_count\nwater,"wet\nand clear",3\nfire,"hot",4\n',
        [("water", "water - wet", "", 3), ("fire", "fire - hot", "", 4)],
    ),
    "e621": (
        "a.csv",
        "mammal,5,343,mammals\nhi_res,7,450,\nanthro,0,33,\n",
        [
            ("mammal", "【species】mammal", "species", 343),
            ("hi_res", "【meta】hi_res", "meta", 450),
            ("anthro", "【general】anthro", "general", 33),
        ],
    ),
    "derpibooru": (
        "a.csv",
        "safe,5,22,\npony,3,20,\nfluttershy,7,9,\n",
        [
            ("safe", "【rating】safe", "rating", 22),
            ("pony", "【species】pony", "species", 20),
            ("fluttershy", "【character】fluttershy", "character", 9),
        ],
    ),
    "danbooru and e621 in one list": (
        "a.csv",
        "1girl,0,60,\nmammal,12,34,\nhi_res,14,31,\n",
        [
            ("1girl", "【general】1girl", "general", 60),
            ("mammal", "【species】mammal", "species", 34),
            ("hi_res", "【meta】hi_res", "meta", 31),
        ],
    ),
    "names of categories": (
        "a.csv",
        "1girl,general,5\nhatsune_miku,character,4\n",
        [
            ("1girl", "【general】1girl", "general", 5),
            ("hatsune_miku", "【character】hatsune_miku", "character", 4),
        ],
    ),
    "a map of names to texts": (
        "a.json",
        '{"1girl": "一个女孩", "school_uniform": ["校服", "制服"]}',
        [("1girl", "1girl - 一个女孩", "", None), ("school_uniform", "school_uniform - 校服, 制服", "", None)],
    ),
    "an array of records": (
        "a.json",
        '[\n {"id": "1",\n  "text": "【服装】a - 甲"},\n {"id": 2, "text": "b"}\n]',
        [("1", "【服装】a - 甲", "服装", None), ("2", "b", "", None)],
    ),
    "a page of tags, its id not the record's": (
        "a.json",
        '[{"id": 470575, "name": "1girl", "post_count": 6, "category": 0, "is_deprecated": false}]',
        [("1girl", "【general】1girl", "general", 6)],
    ),
    "a page of tags in an envelope": (
        "a.json",
        '{"@attributes": {"limit": 100}, "tag": [{"id": 1, "name": "solo", "count": 5, "type": 0,'
        ' "ambiguous": 0}]}',
        [("solo", "【general】solo", "general", 5)],
    ),
    "several pages a file": (
        "a.jsonl",
        '[{"name": "a", "post_count": 2}]\n[{"name": "b", "post_count": 1}]\n',
        [("a", "a", "", 2), ("b", "b", "", 1)],
    ),
    "a page of a wiki, without what is no tag": (
        "a.json",
        '[{"title": "serafuku", "body": "A [[school uniform]]. Much more.", "other_names":'
        ' ["セーラー服"], "is_deleted": false}, {"title": "help:tags", "body": "", "other_names": [],'
        ' "is_deleted": false}, {"title": "gone", "body": "", "is_deleted": true}]',
        [("serafuku", "serafuku - セーラー服, A school uniform.", "", None)],
    ),
    "JSON lines without texts": (
        "a.jsonl",
        '{"id": 7, "name": "solo", "zh": "单人", "posts": 5}\n',
        [("7", "solo - 单人", "", 5)],
    ),
    "a text that names its tag": (
        "a.jsonl",
        '{"tag": "solo", "text": "【人物】solo - 单人"}\n',
        [("solo", "【人物】solo - 单人", "人物", None)],
    ),
    "a text that explains its tag": (
        "a.jsonl",
        '{"tag": "solo", "text": "单人"}\n',
        [("solo", "solo - 单人", "", None)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DUMPS)
def test_what_a_dump_means(tmp_path, kind):
    name, content, expected = DUMPS[kind]
    report, records, _ = prepared(tmp_path, name, content)
    assert records == expected
    assert not report.rejected
    assert report.pages_passed_over == 2 * ("wiki" in kind)
    assert [sample["id"] for sample in report.understood[0]["samples"]] == [r[0] for r in records][
        :3
    ]


REFUSED = {
    "small numbers that may be counts": ("a.csv", "1girl,12\nsolo,9\nlong_hair,7\n", "not plain"),
    "a pointer of git-lfs": (
        "a.csv",
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n",
        "a pointer of git-lfs, not the file",
    ),
    "a web page": ("a.txt", "<!DOCTYPE html>\n<html></html>\n", "a web page, not a dump"),
    "XML": ("a.csv", '<?xml version="1.0"?>\n<tags/>\n', "XML, which is not read"),
    "a gzip file by another name": ("a.csv", gzip.compress(b"a,b"), "name it .gz"),
    "an error of the site": (
        "a.json",
        '{"success": false, "error": "x", "message": "You cannot go beyond page 1000."}',
        "an error that the site answered",
    ),
    "tags under their categories": ("a.json", '{"general": ["1girl"], "artist": ["x"]}', "write a record"),
    "a map of names to small numbers": ("a.json", '{"a": 0, "b": 4}', "may be categories or counts"),
    "columns as pandas writes them": ("a.json", '{"name": {"0": "1girl"}}', "to_json"),
    "rows without names": ("a.json", '[["1girl", 0, 600]]', "to_json"),
    "names and numbers with a space": ("a.txt", "1girl 600\nsolo 500\n", "a number or a text beside"),
    "UTF-7-like Japanese": ("a.csv", "a,猫\n".encode("iso2022_jp"), "likely iso2022_jp"),
    "Korean in its own encoding": (
        "a.csv",
        "고양이 귀,cat_ears\n세일러복,serafuku\n교복과 치마,x\n".encode("cp949"),
        "likely cp949",
    ),
    "columns that no name tells": ("a.csv", "foo,bar\n1girl,5\nsolo,4\n", "which column holds the tags"),
    "two columns of names": ("a.csv", "1girl,solo\ncat,dog\n", "not plain .*--map tag=1,explanation=2"),
    "numbers of several sites": ("a.csv", "x,7,5\ny,8,4\n", "not plainly one site's: say which by --site"),
    "Chinese in its own encoding": (
        "a.csv",
        "1girl,0,5,女孩\nschool_uniform,0,4,校服\n".encode("gbk"),
        "not UTF-8, likely gb18030; add --encoding gb18030",
    ),
    "Japanese in its own encoding": (
        "a.csv",
        "セーラー服,serafuku\n猫耳,cat_ears\n".encode("cp932"),
        "not UTF-8, likely cp932; add --encoding cp932",
    ),
    "UTF-16 without its mark": ("a.csv", "1girl,0,5\nsolo,0,4\n".encode("utf-16-le"), "likely utf-16-le"),
    "names in Chinese": ("a.csv", "女孩\n校服\n单人\n", "probably misunderstood: 3 of 3 tags hold Chinese"),
    "no posts at all": ("a.csv", "a_b,0,0,\nc_d,0,0,\n", "all 2 numbers of posts are 0"),
    "a category a record": (
        "a.csv",
        "tag,category\n" + "".join(f"t{n},c{n}\n" for n in range(30)),
        "30 records have 30 different categories",
    ),
    "sentences": (
        "a.txt",
        "these are words that make up a line\nand so are these that follow the first\n",
        "2 of 2 tags are sentences",
    ),
    "an array that breaks": ("a.json", '[{"name": "a"},\n {"name": "b"', "broken JSON: line 2"),
    "a name twice in the header": ("a.csv", "tag,tag\na,1\n", "two columns are called tag"),
    "an empty file": ("a.csv", "", "no usable record"),
    "a header alone": ("a.csv", "name,category\n", "no usable record"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_plain_is_refused_by_one_line_that_says_what_to_add(tmp_path, kind):
    name, content, words = REFUSED[kind]
    with pytest.raises(InputError, match=words) as refused:
        prepared(tmp_path, name, content)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_rows_of_as_many_widths_as_there_are_rows(tmp_path):
    lines = [f"tag_{n},0," + "," * n for n in range(1, 120)]
    _, records, _ = prepared(tmp_path, "a.csv", "\n".join(lines))
    assert len(records) == 119


@pytest.mark.parametrize("category", [True, ["general"], {"a": 1}])
def test_what_is_no_category_rejects_its_record(tmp_path, category):
    for record in ({"name": "water"}, {"id": 1, "text": "water"}):
        lines = [{**record, "category": 0}, {**record, "id": 2, "name": "x", "category": category}]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        report, records, _ = prepared(tmp_path, "a.jsonl", content)
        assert (len(records), dict(report.rejected)) == (1, {"wrong_type": 1})


def test_values_that_are_no_numbers_and_pages_that_are_no_pages(tmp_path):
    content = '[{"name": "water", "value": "x"}, {"name": "fire", "value": "y"}]'
    assert [record[0] for record in prepared(tmp_path, "a.json", content)[1]] == ["water", "fire"]
    (tmp_path / "tags.csv").write_text("water,0,5,\nfire,0,4,\n")
    (tmp_path / "wiki.csv").write_text(
        "title,body,other_names,is_deleted\nwater,Wet.,水,false\nfire,Hot.,火,true\nx,y,z,perhaps\n"
    )
    report, out = run(tmp_path, tmp_path / "tags.csv", tmp_path / "wiki.csv")
    assert [row["text"] for row in rows_of(out)] == [
        "【general】water - 水, Wet.",
        "【general】fire",
    ]
    (tmp_path / "wiki.json").write_text('[{"title": "water", "body": "", "other_names": {"a": 1}}]')
    report, _ = run(tmp_path, tmp_path / "tags.csv", tmp_path / "wiki.json")
    assert (report.pages, report.pages_passed_over) == (0, 1)


def test_numbers_of_thousands_of_digits(tmp_path):
    content = f"a,0,{'9' * 5000}\nb,{'8' * 5000},4\nc,0,3\nd,0,2\n"
    report, records, _ = prepared(tmp_path, "a.csv", content)
    assert [record[0] for record in records] == ["c", "d"]
    assert dict(report.rejected) == {"wrong_type": 1, "unknown_category": 1}


def test_a_row_with_a_cell_too_many_is_a_reject(tmp_path):
    content = "name,category,description\n" + "".join(f"t_{n},0,it is\n" for n in range(60))
    report, records, _ = prepared(tmp_path, "a.csv", content + "odd,0,it is, indeed\nlast,0,x,\n")
    assert (len(records), dict(report.rejected)) == (61, {"unparsable_line": 1})


def test_what_looks_wrong_is_read_when_it_is_accepted(tmp_path):
    dump = DumpConfig(accept_unlikely=True)
    _, records, _ = prepared(tmp_path, "a.csv", "女孩\n校服\n", dump=dump)
    assert [record[0] for record in records] == ["女孩", "校服"]


@pytest.mark.parametrize(
    ("encoding", "code"),
    [("gbk", "gbk"), ("GB18030", "gb18030"), ("shift_jis", "cp932"), ("utf-16-le", "utf-16-le")],
)
def test_an_encoding_that_is_named(tmp_path, encoding, code):
    content = "1girl,0,5,少女\nsolo,0,4,一人\n".encode(code)
    dump = DumpConfig(encoding=encoding)
    _, records, _ = prepared(tmp_path, "a.csv", content, dump=dump)
    assert records[0][1] == "【general】1girl - 少女"


def test_a_byte_order_mark_says_the_encoding(tmp_path):
    for code in ("utf-8-sig", "utf-16", "utf-32"):
        _, records, _ = prepared(tmp_path, "a.csv", "1girl,0,5,少女\n", code)
        assert records == [("1girl", "【general】1girl - 少女", "general", 5)]
    with pytest.raises(UsageError, match="--encoding 'klingon': no such encoding"):
        prepared(tmp_path, "a.csv", "1girl\n", dump=DumpConfig(encoding="klingon"))


def test_an_encoding_is_not_believed_of_a_file_that_is_utf_8(tmp_path):
    dump = DumpConfig(encoding="gb18030")
    _, records, _ = prepared(tmp_path, "a.csv", "tag,zh\nwater,水\nred_hair,红发\n", dump=dump)
    assert records[1][1] == "red_hair - 红发"
    with pytest.raises(InputError, match="has no byte order mark of utf-16; leave --encoding out"):
        prepared(tmp_path, "b.csv", "tag,zh\nwater,wet\n", dump=DumpConfig(encoding="utf-16"))
    for wrong in ("idna", "punycode", "base64"):
        with pytest.raises(UsageError, match="no such encoding"):
            prepared(tmp_path, "b.csv", "tag\nwater\n", dump=DumpConfig(encoding=wrong))


def test_a_column_that_the_user_names_makes_its_row_a_header(tmp_path):
    dump = DumpConfig(map=("tag=nom,explanation=trad",))
    _, records, _ = prepared(tmp_path, "a.csv", "nom,trad\nwater,eau\nfire,feu\n", dump=dump)
    assert [record[1] for record in records] == ["water - eau", "fire - feu"]


def test_bytes_that_an_encoding_does_not_have_spoil_their_row_only(tmp_path):
    content = "1girl,0,5,女孩\n".encode("gbk") + b"bad,0,4,\xff\xff\nsolo,0,3,\n"
    report, records, _ = prepared(tmp_path, "a.csv", content, dump=DumpConfig(encoding="gbk"))
    assert [record[0] for record in records] == ["1girl", "solo"]
    assert report.rejected == {"invalid_unicode": 1}


def test_numbers_of_a_site_that_is_named_and_numbers_that_no_category_has(tmp_path):
    content = "x,7,5\ny,8,4\nz,9,3\n"
    dump = DumpConfig(site="e621")
    report, records, _ = prepared(tmp_path, "a.csv", content, dump=dump)
    assert [record[2] for record in records] == ["meta", "lore"]
    assert report.rejected == {"unknown_category": 1}
    assert report.understood[0]["site"] == "e621"
    with pytest.raises(UsageError, match="unknown site 'x': choose one of danbooru, e621"):
        prepared(tmp_path, "a.csv", content, dump=DumpConfig(site="x"))


def test_a_stray_number_is_a_reject_and_not_another_site(tmp_path):
    content = "".join(f"t_{n},0,{n}\n" for n in range(1, 300)) + "odd,7,5\n"
    report, records, _ = prepared(tmp_path, "a.csv", content)
    assert (len(records), dict(report.rejected)) == (299, {"unknown_category": 1})


def test_columns_that_the_user_maps(tmp_path):
    content = "nom,traduction,n,k\nwater,水,7,0\n"
    dump = DumpConfig(
        map=("tag=nom,explanation=traduction", "post_count=n,category==things,source=-")
    )
    _, records, _ = prepared(tmp_path, "a.csv", content, dump=dump)
    assert records == [("water", "【things】water - 水", "things", 7)]
    dump = DumpConfig(map=("tag=name,text=cn_name,post_count=count",))
    content = "name,cn_name,count\nwater,水,7\n"
    assert prepared(tmp_path, "b.csv", content, dump=dump)[1] == [("water", "水", "", 7)]
    dump = DumpConfig(map=("tag=2,explanation=1",))
    assert prepared(tmp_path, "c.csv", "one,two\nuno,dos\n", dump=dump)[1][0][1] == "two - one"


def test_a_map_in_a_yaml_file_and_what_is_wrong_with_one(tmp_path):
    (tmp_path / "map.yaml").write_text(
        "tag: nom\nexplanation: [fr, zh]\ncategory: {constant: things}\ndescription: '-'\n"
    )
    dump = DumpConfig(map=(str(tmp_path / "map.yaml"),))
    content = "nom,fr,zh,wiki\nwater,eau,水,wet\n"
    records = prepared(tmp_path, "a.csv", content, dump=dump)[1]
    assert records == [("water", "【things】water - eau, 水", "things", None)]
    (tmp_path / "bad.yaml").write_text("tag: [")
    for word, words in {
        "tag=gone": "no such column; it has nom, fr, zh, wiki",
        "colour=nom": "no such field; there are id, text, tag",
        "tag": "neither field=column nor a YAML file",
        "tag=": "is not field=column",
        str(tmp_path / "bad.yaml"): "cannot be read as YAML",
    }.items():
        with pytest.raises(UsageError, match=words):
            prepared(tmp_path, "a.csv", content, dump=DumpConfig(map=(word,)))


def test_nested_columns_and_lists_in_json_and_parquet(tmp_path):
    line = {"info": {"name": "water"}, "other_names": ["水", "H2O"], "counts": {"posts": 7}}
    dump = DumpConfig(map=("tag=info.name,post_count=counts.posts",))
    records = prepared(tmp_path, "a.jsonl", json.dumps(line), dump=dump)[1]
    assert records == [("water", "water - 水, H2O", "", 7)]
    pq.write_table(pa.Table.from_pylist([line]), tmp_path / "b.parquet")
    report, out = run(tmp_path, tmp_path / "b.parquet", dump=dump)
    assert rows_of(out)[0]["aliases"] == ["水", "H2O"]
    assert report.understood[0]["columns"]["info.name"] == "tag"


def test_parquet_of_any_column_types(tmp_path):
    table = pa.table(
        {
            "name": pa.array(["water", "fire"]).dictionary_encode(),
            "other_names": pa.array([["水"], []], pa.large_list(pa.large_string())),
            "wiki_body": pa.array(["Wet. Clear.", None], pa.large_string()),
            "post_count": pa.array([7, 5], pa.uint32()),
            "category": pa.array([0, 5], pa.int8()),
            "when": pa.array([10**15, 0], pa.timestamp("s")),  # no date that Python has
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    _, out = run(tmp_path, tmp_path / "a.parquet")
    assert [(r["id"], r["text"], r["post_count"]) for r in rows_of(out)] == [
        ("water", "【general】water - 水, Wet.", 7),
        ("fire", "【meta】fire", 5),
    ]


def test_pages_of_several_kinds_are_joined_by_name(tmp_path):
    tags = [{"name": "serafuku", "post_count": 9, "category": 0, "is_deprecated": False}]
    pages = [
        {"title": "Serafuku", "body": "A uniform.", "other_names": ["セーラー服"]},
        {"title": "unused", "body": "", "other_names": ["x"]},
    ]
    (tmp_path / "tags.json").write_text(json.dumps(tags))
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    report, out = run(tmp_path, tmp_path / "wiki.jsonl", tmp_path / "tags.json")
    (row,) = rows_of(out)
    assert (row["id"], row["text"]) == ("serafuku", "【general】serafuku - セーラー服, A uniform.")
    assert row["aliases"] == ["セーラー服"]
    assert report.pages == 2


def test_a_database(tmp_path):
    path = tmp_path / "tags.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("create table tags (id integer, name text, post_count integer)")
        database.execute("create table posts (id integer, tag_list text)")
        database.execute("insert into tags values (3, 'water', 7)")
    report, out = run(tmp_path, path)
    assert [(r["id"], r["tag"], r["post_count"]) for r in rows_of(out)] == [("3", "water", 7)]
    assert report.understood[0]["format"] == "SQLite table tags"
    with sqlite3.connect(path) as database:
        database.execute("create table names (name text, zh text)")
    with pytest.raises(
        InputError, match="several tables: say which by --table: names, posts, tags"
    ):
        run(tmp_path, path)
    assert run(tmp_path, path, dump=DumpConfig(table="tags"))[0].records == 1
    (tmp_path / "b.db").write_text("not a database, whatever its name says")
    with pytest.raises(InputError, match="cannot be read as SQLite"):
        run(tmp_path, tmp_path / "b.db")


def test_a_workbook_and_a_zip(tmp_path):
    book = openpyxl.Workbook()
    for row in (
        ["标签", "中文", "数量"],
        ["water", "水", 7],
        [None, None, None],
        ["fire", "火", 5.0],
    ):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    _, out = run(tmp_path, tmp_path / "a.xlsx")
    assert [(r["text"], r["post_count"]) for r in rows_of(out)] == [
        ("water - 水", 7),
        ("fire - 火", 5),
    ]
    (tmp_path / "b.xlsx").write_text("no workbook")
    with pytest.raises(InputError, match="cannot be read as a workbook"):
        run(tmp_path, tmp_path / "b.xlsx")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("tags.csv", "water,水\n")
    _, out = run(tmp_path, tmp_path / "a.zip")
    assert [r["text"] for r in rows_of(out)] == ["water - 水"]
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("more.csv", "fire,火\n")
    with pytest.raises(InputError, match="holds 2 files; one is needed: unpack it"):
        run(tmp_path, tmp_path / "a.zip")


def test_notes_archives_and_databases_in_a_folder_are_no_dumps(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "tags.tsv").write_text("tag\tcount\nwater\t7\n")
    for name in ("README.txt", "thumbs.db", "old.zip"):
        (folder / name).write_text("not a dump")
    assert run(tmp_path, folder)[0].records == 1


def test_a_dry_run_shows_what_would_be_written_and_writes_nothing(tmp_path):
    report, _ = run_dry(tmp_path, "1girl,0,5,sole_female\n")
    assert not (tmp_path / "out").exists()
    text = report.to_text()
    assert "1 -> tag, 2 -> category, 3 -> post_count, 4 -> aliases" in text
    assert "【general】1girl - sole female  (id 1girl; 5 posts; aliases sole_female)" in text
    assert "would prepare 1 of 1 records" in text


def run_dry(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    return run(tmp_path, tmp_path / "a.csv", dry_run=True)
