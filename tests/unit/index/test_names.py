"""Names: one spelling for what is one name; the table that finds them; how they sound."""

import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from danbooru_index.index import trigrams
from danbooru_index.index.arrays import SavedArrays, save_array
from danbooru_index.index.folding import fold, unescaped, without_parentheses
from danbooru_index.index.names import (
    Named,
    NameKind,
    NameTable,
    explanation_parts,
    name_arrays,
    names_of,
)
from danbooru_index.index.transliteration import pinyin, romaji, simplified, squeezed
from danbooru_index.index.trigrams import SoundIndex, sound_of, trigram_arrays
from danbooru_index.storage.local import LocalStorage

SHARED = Path(__file__).parents[4] / "shared" / "data" / "danbooru_tags.jsonl.gz"


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("Long  Hair", "long_hair"),
        ("LONG_HAIR", "long_hair"),
        ("ｌｏｎｇ　ｈａｉｒ", "long_hair"),
        ("^_^", "^_^"),
        ("＾＿＾", "^_^"),
        ("ﾈｺ ミミ", "ねこみみ"),
        ("セーラー服", "せーらー服"),
        ("初音・ミク", "初音みく"),
        ("が", "が"),  # its mark is no accent
        ("Pokémon", "pokemon"),
        ("don’t", "don't"),
        ("a〜b", "a~b"),
        ("_", "_"),
        ("Straße", "strasse"),
    ],
)
def test_what_is_one_name_has_one_key(written, key):
    assert fold(written) == key
    assert fold(key) == key


def test_parentheses():
    assert without_parentheses("akagi_(kancolle)") == "akagi"
    assert without_parentheses("赤城(舰队系列)") == "赤城"
    assert without_parentheses("(o)_(o)") == "(o)"
    assert without_parentheses(":)") == ":)"
    assert without_parentheses("(9)") == "(9)"
    assert unescaped(r"akagi \(kancolle\)") == "akagi (kancolle)"
    assert unescaped(r"\m/") == r"\m/"


def test_scripts():
    assert simplified("貓耳") == "猫耳"
    assert simplified("後ろ") == "後ろ", "kana: Japanese, left alone"
    assert pinyin("双马尾") == ["shuang", "ma", "wei"]
    assert pinyin("cat") == []
    assert squeezed(romaji("セーラー服")) == "serafuku"
    assert squeezed(romaji("トウキョウ")) == squeezed("tokyo")
    assert romaji("cat") == ""
    assert romaji("黑丝") == "", "not read in part: kuro is another word"
    assert romaji("なに？") == "nani"


def test_the_names_of_a_record():
    text = "【通用】long_hair - 长发、飘逸的头发（及肩）。头发过肩"
    found = names_of("long_hair", ["/lh", "longhair", "ロングヘア"], text)
    assert found == [
        ("long_hair", NameKind.TAG),
        ("/lh", NameKind.ABBREVIATION),
        ("longhair", NameKind.ALIAS),
        ("ロングヘア", NameKind.OTHER_NAME),
        ("长发", NameKind.EXPLANATION),
        ("飘逸的头发（及肩）", NameKind.EXPLANATION),
    ]
    assert explanation_parts("") == []


RECORDS = [
    Named("akagi", (), "akagi", 5, False),
    Named("akagi_(kancolle)", ("赤城",), "akagi", 9000, False),
    Named("akagi_(azur_lane)", (), "akagi", 7000, False),
    Named("cat_ears", ("nekomimi", "猫耳"), "【】cat_ears - 猫耳", 800, False),
    Named("neko", ("akagi",), "neko", 10, False),
    Named("old", (), "old", 10**6, True),
    Named("new", ("old",), "new", 1, False),
    Named("", (), "no tag", 1, False),
]


def table(records=RECORDS):
    return name_arrays(records)


def found(key, arrays=None):
    entries = NameTable(arrays or table()).exactly(key)
    return [
        (RECORDS[row].tag, NameKind(kind).name)
        for row, kind in zip(entries.rows.tolist(), entries.kinds.tolist(), strict=True)
    ]


def test_the_surest_name_comes_first_then_the_tag_of_most_posts():
    assert found("akagi") == [
        ("akagi", "TAG"),
        ("neko", "ALIAS"),
        ("akagi_(kancolle)", "ROMAJI"),  # of 赤城
        ("akagi_(kancolle)", "TAG"),  # a part of its name
        ("akagi_(azur_lane)", "TAG"),
    ]
    assert found("猫耳") == [("cat_ears", "OTHER_NAME"), ("cat_ears", "EXPLANATION")]
    assert found("maoer") == [("cat_ears", "PINYIN")]
    assert found("nekomimi") == [("cat_ears", "ALIAS"), ("cat_ears", "ROMAJI")]
    assert found("me") == [("cat_ears", "INITIALS")]
    assert found("aka") == []
    assert found("") == []


def test_a_deprecated_tag_stands_behind_what_replaced_it():
    assert found("old") == [("new", "ALIAS"), ("old", "TAG")]


def test_names_that_begin_so():
    entries = NameTable(table()).beginning("aka")
    assert {RECORDS[row].tag for row in entries.rows.tolist()} == {
        "akagi", "akagi_(kancolle)", "akagi_(azur_lane)", "neko",
    }  # fmt: skip
    assert not len(NameTable(table()).beginning("zzz").rows)
    assert len(NameTable(table()).beginning("").rows) == len(table()["name_rows"])


def test_a_table_of_nothing():
    arrays = name_arrays([])
    arrays |= trigram_arrays(arrays)
    assert not len(NameTable(arrays).exactly("a").rows)
    assert not len(NameTable(arrays).beginning("a").rows)
    assert not len(SoundIndex(arrays).similar("a", 5)[0])


def test_similar_sounds_are_those_of_highest_cosine():
    """By hand: trigrams of each name, weighted by how rare each is."""
    names = ["serafuku", "sailor", "sera", "surasura", "kurisutina", "christina_(a)", "xyz"]
    arrays = name_arrays([Named(name, (), "", 0, False) for name in names])
    index = SoundIndex(arrays | trigram_arrays(arrays))
    keys = [NameTable(arrays).keys[number].decode() for number in index.names.tolist()]
    assert {*names, "christina"} == set(keys)

    def trigrams(key):
        padded = f" {sound_of(squeezed(key.replace('_', '').replace('(', '').replace(')', '')))} "
        return {padded[at : at + 3] for at in range(len(padded) - 2)}

    every = [trigrams(key) for key in keys]
    rarity = {
        one: np.log((1 + len(keys)) / (1 + sum(one in other for other in every))) + 1
        for one in set().union(*every, trigrams("serafu"))
    }
    asked = trigrams("serafu")

    def length(some):
        return np.sqrt(sum(rarity[one] ** 2 for one in some))

    by_hand = {
        key: sum(rarity[one] ** 2 for one in asked & own) / (length(asked) * length(own))
        for key, own in zip(keys, every, strict=True)
    }
    rows, cosines = index.similar("serafu", 3)
    best = sorted((value for value in by_hand.values() if value), reverse=True)[:3]
    assert cosines.tolist() == pytest.approx(best, abs=1e-5)
    assert [by_hand[keys[row]] for row in rows.tolist()] == pytest.approx(best, abs=1e-5)
    assert cosines[0] < 1


@pytest.mark.parametrize("by_length", [True, False], ids=["by length", "an earlier generation"])
@pytest.mark.parametrize("seeds", [1, 30, 20_000])
def test_none_of_the_most_similar_sounds_is_missed(seeds, by_length, monkeypatch):
    """Against all names compared with all trigrams; queries of few trigrams and of many; several
    blocks of names, whose lengths ascend or, as they were written before, do not.
    """
    monkeypatch.setattr(trigrams, "SEED_POSTINGS", seeds)
    monkeypatch.setattr(trigrams, "BLOCK", 100)
    chance = random.Random(seeds)
    syllables = ["ka", "ri", "su", "to", "na", "mi", "yo", "shi", "rei", "an"]
    names = {"".join(chance.choices(syllables, k=chance.randint(1, 6))) for _ in range(1500)}
    arrays = name_arrays([Named(name, (), "", 0, False) for name in sorted(names)])
    sounds = trigram_arrays(arrays)
    if not by_length:
        order = np.random.default_rng(seeds).permutation(len(sounds["sound_names"]))
        codes = np.repeat(np.arange(len(sounds["sound_trigrams"])), np.diff(sounds["sound_starts"]))
        postings = trigrams._renumbered(codes, sounds["sound_postings"], order)
        sounds |= {f"sound_{n}": sounds[f"sound_{n}"][order] for n in ("names", "rows", "norms")}
        sounds["sound_postings"] = postings.astype(np.int32)
    assert np.all(np.diff(sounds["sound_norms"]) >= 0) == by_length
    index, most = SoundIndex(arrays | sounds), 0
    for length in (1, 2, 3, 5, 60):
        for _ in range(20):
            letters = "".join(chance.choices(syllables, k=length))
            lists, squares, norm = index._asked(letters)
            most = max(most, len(lists))
            sums = np.zeros(len(index.names))
            for postings, square in zip(lists, squares, strict=True):
                sums[postings] += square
            exact = np.sort(sums / (index._norms * norm))[::-1][:20]
            found, cosines = index.similar(letters, 20)
            assert len({*found.tolist()}) == len(found) == min(20, np.count_nonzero(sums))
            assert cosines.tolist() == pytest.approx(exact[: len(found)].tolist(), abs=1e-6)
    assert most > trigrams.MOST_IN_BYTES, "no query was long enough for bounds of two bytes"


def test_arrays_are_saved_and_mapped(tmp_path):
    folder = LocalStorage(tmp_path)
    save_array(folder, "some", np.arange(5))
    save_array(folder, "words", np.array(["通用", "画师"]))
    arrays = SavedArrays(folder)
    assert sorted(arrays) == ["some", "words"]
    assert arrays["some"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["words"].tolist() == ["通用", "画师"]
    assert not arrays["some"].flags.writeable


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")
def test_every_name_of_the_real_tags_finds_its_tag_first():
    """All tags and aliases of 137,317 records; of those that share a name, the one of most posts."""
    with gzip.open(SHARED, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    names = NameTable(
        name_arrays(
            Named(r["tag"], tuple(r["aliases"]), "", r["post_count"] or 0, False) for r in records
        )
    )
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for row, record in enumerate(records):
        for kind, written in [("tag", record["tag"]), *(("alias", a) for a in record["aliases"])]:
            best = (-(record["post_count"] or 0), row)
            key = (kind, fold(written))
            first[key] = min(first.get(key, best), best)
    wrong = 0
    for (kind, key), (_, row) in first.items():
        if kind == "alias" and ("tag", key) in first:
            continue  # it is another tag's own name
        wrong += int(names.exactly(key).rows[0]) != row
    assert len(first) > 160_000
    assert wrong == 0


def test_threads_read_names_as_one_does():
    """MeCab's tagger is one thread's: two at once read each other's characters."""
    words = ["横目でちらっと見る", "両手で刀の柄", "出口を探す", "縦縞ドレス", "高齢者"] * 40
    alone = [romaji(word) for word in words]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(romaji, words)) == alone
