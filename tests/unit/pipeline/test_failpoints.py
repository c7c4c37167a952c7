"""Every named point is somewhere in the package; off, it does nothing; it fires as often as it is
told to.
"""

import ast
from pathlib import Path

import pytest

from danbooru_index.errors import StorageError
from danbooru_index.failpoints import POINTS, Failpoint, armed, reach

PACKAGE = Path(__file__).parents[3] / "danbooru_index"


def test_every_point_is_reached_and_every_reached_one_is_listed():
    found = {
        node.args[0].value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reach"
    }
    assert found == set(POINTS)


def test_once_after_some_and_never_when_off(tmp_path):
    reach("encode.begin", "a")
    points = (Failpoint("encode.begin", "error", shard="a", token=str(tmp_path / "token"), skip=1),)
    with armed(points):
        reach("encode.begin", "b")
        reach("encode.begin", "a")
        with pytest.raises(StorageError, match=r"injected at encode\.begin"):
            reach("encode.begin", "a")
        reach("encode.begin", "a")
    reach("encode.begin", "a")


def test_an_unknown_point_is_refused():
    with pytest.raises(ValueError, match="no failpoint"):
        Failpoint("encode.nowhere")
