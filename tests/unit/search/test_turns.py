"""Threads take turns at the cores, and a search that fails gives its turn back."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from danbooru_index.choices import Mode
from danbooru_index.search import hybrid

ANY = SimpleNamespace(files=None, text="a query")


def test_no_more_searches_run_at_once_than_may(monkeypatch):
    running, most = 0, 0
    counting, pair = threading.Lock(), threading.Barrier(2)

    def slow(*_):
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
        pair.wait(timeout=60)  # two may: on one busy core too
        time.sleep(0.02)
        with counting:
            running -= 1

    monkeypatch.setattr(hybrid, "TURNS", threading.BoundedSemaphore(2))
    monkeypatch.setattr(hybrid, "rank_names", slow)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: hybrid.rank(ANY, ANY, Mode.LEXICAL, 10), range(16)))
    assert most == 2


def test_a_search_that_fails_gives_its_turn_back(monkeypatch):
    monkeypatch.setattr(hybrid, "TURNS", threading.BoundedSemaphore(1))
    for _ in range(3):  # the second would wait for ever
        with pytest.raises(AttributeError):
            hybrid.rank(None, None, Mode.LEXICAL, 10)


@pytest.mark.parametrize(("dense", "takes_a_turn"), [(None, False), ("mapped", True)])
def test_an_object_store_is_waited_for_by_all_at_once(dense, takes_a_turn):
    reader = SimpleNamespace(files=None, vectors=SimpleNamespace(dense=dense))
    assert (hybrid._turn(reader, Mode.HYBRID) is hybrid.TURNS) is takes_a_turn
