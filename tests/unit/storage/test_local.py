"""Storage on a file system: exclusive creation, one owner at a time."""

import os

import pytest

from danbooru_index.errors import IndexBusyError
from danbooru_index.storage.local import LocalStorage


def test_one_owner_at_a_time_and_the_next_at_once(index):
    with (
        index.path.owned(),
        pytest.raises(IndexBusyError, match=f"process {os.getpid()}"),
        index.path.owned(),
    ):
        pass
    with index.path.owned():
        pass


def test_exclusive_creation(tmp_path):
    assert LocalStorage(tmp_path / "a").create(b"1")
    assert not LocalStorage(tmp_path / "a").create(b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
