"""JSON of any shape, cut anywhere: streamed values equal those of a parser that reads it whole."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danbooru_index.ingest import json_text
from danbooru_index.ingest.json_text import BrokenJsonError, read_values

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.floats(-9, 9)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


class Drops:
    """A text that is read a few characters at a time, whatever was asked for."""

    def __init__(self, text, size):
        self.text, self.size = io.StringIO(text), size

    def read(self, _):
        return self.text.read(self.size)


@given(st.lists(VALUES, max_size=6), st.integers(1, 7), st.sampled_from([None, 1]))
def test_the_items_of_an_array(values, size, indent):
    text = json.dumps(values, ensure_ascii=False, indent=indent)
    assert [value for _, value in read_values(Drops(text, size))] == values


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=5), max_size=30))
def test_the_members_of_a_map(members):
    text = json.dumps(members, ensure_ascii=False)
    assert [pair for _, pair in read_values(Drops(text, 3))] == list(members.items())


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 60))
def test_a_cut_is_told_and_never_a_traceback(values, cut):
    text = json.dumps([values, {"a": values}])
    whole = list(read_values(io.StringIO(text)))
    short = text[: max(1, len(text) - cut)]
    found = []
    with pytest.raises(BrokenJsonError, match="line 1"):
        found.extend(read_values(io.StringIO(short)))
    assert len(found) <= len(whole)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1,\n2,\nx]", "line 3: Expecting value"),
        ("[1 2]", "line 1: ',' is needed"),
        ('{"a" 1}', "line 1: ':' is needed"),
        ('{1: "a"}', "a name in quotes is needed"),
        ('[{"a": 1, "a": 2}]', "the name 'a' occurs twice"),
        ("[" * 100_000, "line 1: maximum recursion depth"),
        ("x", "an array or an object is needed"),
    ],
)
def test_what_breaks_is_told_by_its_line(text, words):
    with pytest.raises(BrokenJsonError, match=words):
        list(read_values(io.StringIO(text)))


def test_a_value_without_an_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(json_text, "LONGEST_VALUE", 1000)
    endless = Drops('["' + "x" * 10_000_000, 1 << 16)
    with pytest.raises(BrokenJsonError, match="line 1"):
        list(read_values(endless))
    assert endless.text.tell() < 1 << 20
