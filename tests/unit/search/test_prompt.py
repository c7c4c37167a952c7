"""A pasted prompt is the names that it lists; each name is a tag, an alias, nearly one, or not."""

import pyarrow as pa
import pytest

from danbooru_index.index.search_files import SearchFiles, make_search_arrays
from danbooru_index.search.filters import allowed
from danbooru_index.search.prompt import plain_name, split_prompt
from danbooru_index.search.resolve import format_resolved, resolve_names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("(long hair:1.2)", "long hair"),
        ("((long hair))", "long hair"),
        ("(((long hair:1.1):1.2))", "long hair"),
        ("[long hair]", "long hair"),
        ("{{long hair}}", "long hair"),
        ("1.2::long hair::", "long hair"),
        ("-0.5::long hair", "long hair"),
        (r"akagi \(kancolle\)", "akagi (kancolle)"),
        (r"(akagi \(kancolle\):1.3)", "akagi (kancolle)"),
        ("akagi_(kancolle)", "akagi_(kancolle)"),
        ("(akagi (kancolle))", "akagi (kancolle)"),
        ("(long hair", "long hair"),
        ("blue eyes:1.2)", "blue eyes"),
        ("artist:wlop", "wlop"),
        ("re:zero", "re:zero"),
        ("year 2023", "year 2023"),
        (":d", ":d"),
        ("  ", ""),
        ("()", ""),
    ],
)
def test_a_part_without_what_only_a_generator_reads(written, name):
    assert plain_name(written) == name


def test_a_prompt_is_its_parts_in_their_order_each_once():
    prompt = "masterpiece, (long hair, blue eyes:1.2), <lora:x:0.8> 1girl BREAK 水手服，双马尾、1girl,\n{x},"
    assert [part.name for part in split_prompt(prompt)] == [
        "masterpiece", "long hair", "blue eyes", "1girl", "水手服", "双马尾", "x",
    ]  # fmt: skip
    assert split_prompt(" , ,") == []


TAGS = [
    ("1girl", ["sole_female"], ""),
    ("long_hair", [], "长发"),
    (":)", [], ""),
    ("akagi_(kancolle)", [], ""),
    ("school_uniform", [], ""),
    ("serafuku", [], "水手服"),
    ("explicit", [], ""),
]


@pytest.fixture(scope="module")
def files():
    rows = [
        {
            "id": str(number), "tag": tag, "category": "", "source": "", "post_count": 100,
            "text": f"【】{tag} - {explained}", "aliases": aliases, "nsfw": tag == "explicit",
            "deprecated": False,
        }
        for number, (tag, aliases, explained) in enumerate(TAGS)
    ]  # fmt: skip
    return SearchFiles(make_search_arrays(pa.Table.from_pylist(rows).to_batches()))


def resolved(files, text):
    from danbooru_index.config import Filter

    names = resolve_names(files, text, allowed(files, Filter(nsfw=True)).mask)
    return [(one.name, one.standing, one.tag or list(one.candidates)) for one in names]


def test_each_name_is_told_what_it_is(files):
    prompt = r"(Long Hair:1.2), sole female, :), akagi \(kancolle\), schol uniform, 水手服, zzzz, explicit"
    assert resolved(files, prompt) == [
        ("Long Hair", "confirmed", "long_hair"),
        ("sole female", "alias", "1girl"),
        (":)", "confirmed", ":)"),
        ("akagi (kancolle)", "confirmed", "akagi_(kancolle)"),
        ("schol uniform", "candidates", ["school_uniform"]),
        ("水手服", "alias", "serafuku"),
        ("zzzz", "unknown", []),
        ("explicit", "confirmed", "explicit"),
    ]
    assert resolved(files, ",") == []


def test_a_line_a_name(files):
    from danbooru_index.config import Filter

    names = resolve_names(files, "1girl, zzzz", allowed(files, Filter()).mask)
    assert format_resolved(names) == "  confirmed   1girl  ->  1girl\n  unknown     zzzz"
    assert format_resolved([]) == "  no name in it"
