"""Dumps that are empty, still growing, or not there are refused before anything is done."""

import os
import threading
import time

import pytest

from danbooru_index.errors import InputError
from danbooru_index.ingest import settled
from danbooru_index.ingest.settled import settled_since


def test_the_newest_change_of_all_files_behind_the_inputs(tmp_path):
    for name, changed in (("a.jsonl", 1_000_000), ("b.csv", 2_000_000)):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (changed, changed))
    assert settled_since((str(tmp_path),)) == 2_000_000
    assert settled_since((str(tmp_path / "a.jsonl"),)) == 1_000_000


def test_an_empty_file_and_one_that_is_not_there(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match=r"a\.jsonl: empty \(0 bytes\); nothing was begun"):
        settled_since((str(tmp_path / "a.jsonl"),))
    with pytest.raises(InputError, match="no such file"):
        settled_since((str(tmp_path / "b.jsonl"),))


def test_a_file_that_somebody_is_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(settled, "LOOK_AGAIN_S", 1.0)
    path, ended = tmp_path / "a.jsonl", threading.Event()
    path.write_text("x")

    def write():
        while not ended.wait(0.05):
            with path.open("a") as file:
                file.write("more\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(InputError, match=r"a\.jsonl: still being written"):
            settled_since((str(path),))
    finally:
        ended.set()
        writer.join()
    began = time.monotonic()
    assert settled_since((str(path),)) == path.stat().st_mtime
    assert time.monotonic() - began >= 1.0, "a file of this minute is looked at twice"
