"""Files of translations: any order, spelling and number of them; what does not fit is told."""

import json

import pytest
from test_preparation import rows_of, run

from danbooru_index.errors import InputError, UsageError
from danbooru_index.prepare_config import DumpConfig

DUMP = "long_hair,0,9,\nschool_uniform,0,8,\n1girl,0,7,\nsolo,0,6,\n"


def translated(tmp_path, *contents, **options):
    """The texts of `DUMP`, with files of translations: {name: content}."""
    (tmp_path / "dump.csv").write_text(DUMP)
    files = []
    for number, content in enumerate(contents):
        name = "zh.json" if content[:1] in ("{", b"{") else "zh.csv"
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        files.append(str(path))
    report, out = run(tmp_path, tmp_path / "dump.csv", translations=tuple(files), **options)
    return report, [row["text"].removeprefix("【general】") for row in rows_of(out)]


@pytest.mark.parametrize(
    "content",
    [
        "long_hair,长发\nsolo,单人\n",
        "长发,long_hair\n单人,solo\n",
        "long_hair,0,长发\nsolo,0,单人\n",
        "tag\tcn\nlong_hair\t长发\nsolo\t单人\n",
        "中文,标签\n长发,long_hair\n单人,solo\n",
        "Long Hair,长发\nSOLO,单人\n",
        '{"long_hair": "长发", "solo": "单人"}',
        "﻿long_hair,长发\nsolo,单人\n",
        "tag,text\nlong_hair,长发\nsolo,单人\n",
    ],
)
def test_translations_in_every_form(tmp_path, content):
    report, texts = translated(tmp_path, content)
    assert texts == ["long_hair - 长发", "school_uniform", "1girl", "solo - 单人"]
    assert (report.joined, report.joined_share) == (2, 1.0)
    assert report.translations[0]["tags"] == 2


def test_several_files_and_several_explanations_of_a_tag_once_each(tmp_path):
    first = "long_hair,长发\nlong hair,长头发\nlong_hair,长发\n"
    report, texts = translated(tmp_path, first, "long_hair,ロングヘア\nsolo,ソロ\n")
    assert texts[0] == "long_hair - 长发, 长头发, ロングヘア"
    assert texts[3] == "solo - ソロ"
    assert [file["tags"] for file in report.translations] == [1, 2]


def test_a_file_that_names_none_of_the_tags_is_refused_beside_one_that_does(tmp_path):
    with pytest.raises(InputError, match=r"1-zh\.csv: names none of these 4 tags"):
        translated(tmp_path, "long_hair,长发\n", "cat,猫\n")


def test_columns_that_nothing_was_made_of_are_told(tmp_path):
    content = "tag,zh,aliases\nlong_hair,长发,longhair\n"
    report, texts = translated(tmp_path, content)
    assert texts[0] == "long_hair - 长发"
    assert report.translations[0]["unused"] == ["aliases"]
    assert "1 tags, 1 of them the input's; left out: aliases" in report.to_text()


def test_an_open_quote_spoils_its_row_only(tmp_path):
    content = 'long_hair,长发\nschool_uniform,"校服\nsolo,单人\n'
    report, texts = translated(tmp_path, content)
    assert texts == ["long_hair - 长发", "school_uniform", "1girl", "solo - 单人"]
    assert report.translations[0]["left_out"] == 1
    assert "1 rows left out" in report.to_text()


def test_another_encoding(tmp_path):
    with pytest.raises(InputError, match="likely gb18030; add --encoding gb18030"):
        translated(tmp_path, "long_hair,长发\nsolo,单人\n".encode("gbk"))
    dump = DumpConfig(encoding="gb18030")
    _, texts = translated(tmp_path, "long_hair,长发\nsolo,单人\n".encode("gbk"), dump=dump)
    assert texts[0] == "long_hair - 长发"


def test_what_names_none_or_few_of_the_tags_is_refused(tmp_path):
    accept = DumpConfig(accept_unlikely=True)
    for dump in (DumpConfig(), accept):  # a file that joins nothing is always refused
        with pytest.raises(InputError, match=r"names none of these 4 tags \(its first: 'cat'"):
            translated(tmp_path, "cat,猫\ndog,狗\n", dump=dump)
    others = "".join(f"t{n},名{n}\n" for n in range(200))
    (tmp_path / "many.csv").write_text("".join(f"m{n},0,{n + 1},\n" for n in range(200)))
    zh = tmp_path / "zh.csv"
    zh.write_text(f"m1,甲\n{others}")
    with pytest.raises(InputError, match=r"names 1 of these 200 tags, 0\.5% of its own"):
        run(tmp_path, tmp_path / "many.csv", translations=str(zh))
    report, _ = run(tmp_path, tmp_path / "many.csv", translations=str(zh), dump=accept)
    assert report.joined == 1


def test_a_file_of_one_column_and_one_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="two columns are needed, the tags and their explan"):
        translated(tmp_path, "long_hair\nsolo\n")
    (tmp_path / "dump.csv").write_text(DUMP)
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read"):
        run(tmp_path, tmp_path / "dump.csv", translations=str(tmp_path / "gone.csv"))


def test_records_that_bring_their_own_text_stay_as_they_are(tmp_path):
    own = {"id": "1", "text": "【x】solo", "tag": "solo"}
    (tmp_path / "own.jsonl").write_text(json.dumps(own))
    (tmp_path / "zh.csv").write_text("solo,单人\n")
    with pytest.raises(UsageError, match="brings its own text"):
        run(tmp_path, tmp_path / "own.jsonl", translations=str(tmp_path / "zh.csv"))
    (tmp_path / "more.csv").write_text("solo,0,5,\n")
    inputs = (tmp_path / "own.jsonl", tmp_path / "more.csv")
    _, out = run(tmp_path, *inputs, translations=str(tmp_path / "zh.csv"))
    assert [row["text"] for row in rows_of(out)] == ["【x】solo", "【general】solo - 单人"]
