"""More than one tag in a query: sentences and prompts, by part."""

import numpy as np
import pyarrow as pa
import pytest

from danbooru_index.choices import MatchReason
from danbooru_index.config import Filter
from danbooru_index.index.search_files import SearchFiles, make_search_arrays
from danbooru_index.index.words import words_of
from danbooru_index.search.description import find_names, parts_of, tags_of_part
from danbooru_index.search.hybrid import with_parts
from danbooru_index.search.lexical import Match
from danbooru_index.search.ranking import rank_names

TAGS = [
    ("serafuku", "水手服", []),
    ("twintails", "双马尾", []),
    ("rain", "雨", ["雨"]),
    ("umbrella", "伞", ["傘"]),
    ("long_hair", "长发", []),
    ("white_hair", "白色头发", []),
    ("girl_(mokufuu)", "女孩", ["girl"]),
    ("cat_ears", "猫耳", ["猫耳"]),
    ("maid", "女仆", []),
    ("pantyhose", "连裤袜", []),
    ("black_theme", "黑色", []),
    ("school_uniform", "校服", []),
    (":)", "微笑", []),
]


@pytest.fixture(scope="module")
def files():
    rows = [
        {
            "id": tag, "tag": tag, "category": "通用", "text": f"【通用】{tag} - {explained}",
            "source": "", "post_count": 1000 - number, "aliases": aliases,
            "nsfw": tag == "maid", "deprecated": False,
        }
        for number, (tag, explained, aliases) in enumerate(TAGS)
    ]  # fmt: skip
    return SearchFiles(make_search_arrays(pa.Table.from_pylist(rows).to_batches()))


def parts(files, query, mask=None):
    found = parts_of(files, query, np.ones(files.rows, bool) if mask is None else mask)
    return {part.text: part.covered for part in found}


def tags(files, query):
    matches = find_names(files, query, 10, np.ones(files.rows, bool))
    return [(TAGS[match.row][0], match.part) for match in matches if match.sure]


def test_a_chinese_sentence_is_answered_by_the_names_in_it(files):
    query = "一个穿着水手服的双马尾女孩在雨中撑伞"
    assert parts(files, query) == {
        "水手服": True, "双马尾": True, "女孩": False, "雨": True, "撑伞": False
    }  # fmt: skip
    assert tags(files, query) == [("serafuku", "水手服"), ("twintails", "双马尾"), ("rain", "雨")]


def test_a_japanese_sentence_is_answered_by_names_and_by_how_words_sound(files):
    query = "雨の中で傘をさしているセーラー服の女の子"
    found = parts(files, query)
    assert [text for text, covered in found.items() if covered] == ["雨", "傘", "セーラー服"]
    assert "女の子" in found
    assert "の" not in "".join(text for text in found if text != "女の子")
    reasons = {m.part: m.reason for m in find_names(files, query, 9, np.ones(files.rows, bool))}
    assert reasons["セーラー服"] is MatchReason.TRANSLITERATION
    assert reasons["傘"] is MatchReason.OTHER_NAME


def test_an_english_sentence_and_a_prompt(files):
    sentence = "a girl with twintails wearing a school uniform in the rain"
    assert tags(files, sentence) == [
        ("twintails", "twintails"), ("school_uniform", "school uniform"), ("rain", "rain")
    ]  # fmt: skip
    prompt = r"(long hair:1.2), girl \(mokufuu\), :), xyzzy, {猫耳}"
    assert parts(files, prompt) == {
        "long hair": True, "girl (mokufuu)": True, ":)": True, "xyzzy": False, "猫耳": True
    }  # fmt: skip


def test_the_longest_name_wins_and_joining_words_may_stand_inside(files):
    assert [tag for tag, _ in tags(files, "白色的头发，双马尾")] == ["white_hair", "twintails"]


@pytest.mark.parametrize(
    "query",
    ["水手服", "黑色连裤袜", "school uniform", "穿水手服的双马尾", "", "   ", "的的的的的的的的"],
)
def test_what_asks_for_one_tag_is_not_split(files, query):
    assert parts(files, query) == {}


def test_what_is_longer_than_any_prompt_is_not_split(files):
    assert len(parts(files, ", ".join(["twintails", *(f"x{n}" for n in range(500))]))) == 501
    assert parts(files, ", ".join(["twintails", *(f"x{n}" for n in range(5000))])) == {}


def test_a_filter_holds_for_parts(files):
    safe = np.array([tag != "maid" for tag, *_ in TAGS])
    query = "猫耳，女仆，长发"
    assert parts(files, query)["女仆"]
    assert not parts(files, query, safe)["女仆"]
    found = rank_names(files, query, 10, Filter())
    assert "maid" not in [TAGS[row][0] for row in found.rows]


def test_a_qualified_tag_is_named_by_its_whole_name_alone(files):
    everything = np.ones(files.rows, bool)
    assert tags_of_part(files, "girl", 3, everything) == []
    assert len(tags_of_part(files, "girl_(mokufuu)", 3, everything)) == 1


def test_what_parts_mean_stands_behind_what_they_name():
    named = Match(3, MatchReason.EXACT, 1.0, 0, sure=True, part="a")
    likely = [Match(5, MatchReason.SPELLING, 0.9, -1), Match(6, MatchReason.PREFIX, 0.4, -1)]
    meant = [
        Match(row, MatchReason.MEANING, 1.0, -1, sure=True, part=text)
        for row, text in ((8, "b"), (3, "c"), (5, "d"), (8, "e"))
    ]
    found = with_parts([named, *likely], meant)
    assert [(m.row, m.part) for m in found] == [(3, "a"), (8, "b"), (5, "d"), (6, "")]


def test_words_that_join_are_told_apart():
    told = {word.text: word.joins for word in words_of("穿着水手服的女孩")}
    assert told == {"穿着": True, "水手服": False, "的": True, "女孩": False}
    told = {word.text: word.joins for word in words_of("傘をさしている")}
    assert told["を"]
    assert not told["傘"]
    assert [word.joins for word in words_of("a girl with it")] == [True, False, True, True]
