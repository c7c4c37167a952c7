"""Lexical retrieval: the names of tags, without a model, each answer with its reason."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from danbooru_index.choices import MatchReason
from danbooru_index.config import Filter, Fusion
from danbooru_index.errors import UsageError
from danbooru_index.index.search_files import SearchFiles, make_search_arrays
from danbooru_index.search.filters import allowed
from danbooru_index.search.hybrid import M3_ALONE, fuse
from danbooru_index.search.lexical import LexicalRetriever, Match
from danbooru_index.search.ranking import rank_names

TAGS = [
    # tag, posts, aliases, explanation, category
    ("1girl", 6_000_000, ["sole_female", "1girls"], "一个女孩", "人物"),
    ("^_^", 100, [], "", "表情"),
    ("^^^", 90_000, [], "惊讶的", "通用"),
    ("hair_over_one_eye", 200_000, [], "", "人物"),
    ("solid_oval_eyes", 900, [], "", "人物"),
    ("school_uniform", 800_000, [], "校服", "服饰"),
    ("cat_ears", 400_000, ["猫耳"], "猫耳", "人物"),
    ("rabbit_ears", 300_000, ["bunny_ears"], "兔耳", "人物"),
    ("serafuku", 300_000, [], "水手服", "服饰"),
    ("long_hair", 5_000_000, ["/lh", "longhair"], "长发", "人物"),
    ("twintails", 1_000_000, [], "双马尾", "人物"),
    ("akagi_(kancolle)", 12_000, [], "赤城（舰队）", "角色"),
    ("lancer_(artoria)", 50, [], "", "角色"),
    ("nude_thing", 70, [], "猫耳", "通用"),
    ("chopsticks", 9_000, [], "筷子", "物品"),
]


@pytest.fixture(scope="module")
def files():
    rows = [
        {
            "id": str(number), "tag": tag, "category": category,
            "text": f"【{category}】{tag} - {explained}" if explained else f"【{category}】{tag}",
            "source": "danbooru", "post_count": posts, "aliases": aliases,
            "nsfw": tag == "nude_thing", "deprecated": False,
        }
        for number, (tag, posts, aliases, explained, category) in enumerate(TAGS)
    ]  # fmt: skip
    return SearchFiles(make_search_arrays(pa.Table.from_pylist(rows).to_batches()))


def answers(files, query, limit=5, **wanted):
    ranking = rank_names(files, query, limit, Filter(**wanted))
    return [
        (TAGS[row][0], match.reason.value)
        for row, match in zip(ranking.rows.tolist(), ranking.matches, strict=True)
    ]


@pytest.mark.parametrize(
    ("query", "tag", "reason"),
    [
        ("^_^", "^_^", "exact"),
        ("Long Hair", "long_hair", "exact"),
        ("ＬＯＮＧ＿ＨＡＩＲ", "long_hair", "exact"),
        ("sole_female", "1girl", "alias"),
        ("sole female", "1girl", "alias"),
        ("/lh", "long_hair", "abbreviation"),
        ("猫耳", "cat_ears", "other name"),
        ("貓耳", "cat_ears", "other name"),
        ("雙馬尾", "twintails", "other name"),
        ("水手服", "serafuku", "other name"),
        ("akagi", "akagi_(kancolle)", "exact"),
        (r"akagi \(kancolle\)", "akagi_(kancolle)", "exact"),
        ("赤城", "akagi_(kancolle)", "other name"),
        ("【人物】cat_ears - 猫耳。", "cat_ears", "exact"),
        ("hair ov", "hair_over_one_eye", "prefix"),
        ("*_over_*", "hair_over_one_eye", "prefix"),
        ("schol uniform", "school_uniform", "spelling"),
        ("serahuku", "serafuku", "spelling"),
        ("セーラー服", "serafuku", "transliteration"),
        ("shuangmawei", "twintails", "transliteration"),
        ("smw", "twintails", "transliteration"),
    ],
)
def test_a_name_finds_its_tag_and_says_how(files, query, tag, reason):
    assert answers(files, query)[0] == (tag, reason)


def test_what_is_no_name_finds_nothing_sure(files):
    assert LexicalRetriever(files).named("a girl with cat ears", 5, np.ones(files.rows, bool)) == []
    assert answers(files, "a" * 5000) == []
    assert answers(files, "🙂") == []


def test_the_name_that_matched(files):
    retriever = LexicalRetriever(files)
    for query, name in {
        "sole female": "sole_female", "貓耳": "猫耳", "雙馬尾": "双马尾", "smw": "双马尾",
        "schol uniform": "school_uniform", "セーラー服": "serafuku", "buny ears": "bunny_ears",
    }.items():  # fmt: skip
        match = retriever.find(query, 1, np.ones(files.rows, bool))[0]
        assert retriever.name(query, match, files.records([match.row])[0]) == name


def test_filters_hold_for_names_too(files):
    assert answers(files, "猫耳")[0][0] == "cat_ears"
    assert "nude_thing" not in dict(answers(files, "猫耳"))
    assert "nude_thing" in dict(answers(files, "猫耳", nsfw=True))
    assert answers(files, "猫耳", categories=("服饰",)) == []
    assert "^_^" not in dict(answers(files, "^_^", min_post_count=1000))


def test_an_unknown_category_names_the_near_ones(files):
    with pytest.raises(UsageError, match="did you mean 服饰"):
        allowed(files, Filter(("服飾",)))
    with pytest.raises(UsageError, match="categories here: 人物, 服饰"):
        allowed(files, Filter(("x",)))


def test_a_category_is_compared_to_its_last_character():
    rows = [
        {
            "id": category, "tag": "a", "category": category, "text": "a", "source": "",
            "post_count": None, "aliases": [], "nsfw": False, "deprecated": False,
        }
        for category in ("通用", "通用\0", "通用 ", "")
    ]  # fmt: skip
    files = SearchFiles(make_search_arrays(pa.Table.from_pylist(rows).to_batches()))
    for row, record in enumerate(rows):
        mask = allowed(files, Filter((record["category"],))).mask
        assert np.flatnonzero(mask).tolist() == [row]


def test_masks_are_those_of_the_records(files):
    records = files.records(range(files.rows))
    for wanted in (Filter(), Filter(("人物", "角色"), 1000, True), Filter(min_post_count=0)):
        by_hand = [
            (wanted.nsfw or not record["nsfw"])
            and (not wanted.categories or record["category"] in wanted.categories)
            and (wanted.min_post_count is None or record["post_count"] >= wanted.min_post_count)
            for record in records
        ]
        assert allowed(files, wanted).mask.tolist() == by_hand


def test_names_first_then_the_score_with_what_is_added(files):
    rows = np.array([0, 5, 6, 9])
    m3 = np.array([0.9, 0.5, 0.1, 0.9], np.float32)
    matches = [
        Match(6, MatchReason.OTHER_NAME, 1.0, 1, sure=True),
        Match(5, MatchReason.SPELLING, 1.0, -1),
    ]
    alone = fuse(files, rows, m3, matches, M3_ALONE)
    assert rows[alone].tolist() == [0, 9, 5, 6], "ties in row order"
    assert rows[fuse(files, rows, m3, matches, Fusion())].tolist() == [6, 5, 0, 9]
    popular = Fusion(names=False, spelling=0, popularity=1.0)
    assert rows[fuse(files, rows, m3, matches, popular)].tolist() == [0, 9, 5, 6]


def test_weights_that_cannot_be_meant():
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--popularity must be"):
            Fusion(popularity=wrong)


LIGHT = """
import json, sys
from danbooru_index.search.tag_index import TagIndex
from danbooru_index.search.hit import format_hits
from danbooru_index.cli.entry import make_parser
print(json.dumps([name for name in ("torch", "lance", "pandas", "transformers", "FlagEmbedding", "ray") if name in sys.modules]))
"""


def test_a_lexical_search_imports_neither_lance_nor_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
