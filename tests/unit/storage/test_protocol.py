"""The Storage protocol, kept by each of its classes: the same calls, the same answers, on a file
system and on an S3 server (moto).
"""

import os
import threading

import pytest
from s3_server import s3_server

from danbooru_index.errors import IndexBusyError, StorageError
from danbooru_index.storage.local import LocalStorage
from danbooru_index.storage.locate import locate
from danbooru_index.storage.s3 import S3Storage


@pytest.fixture(scope="module", params=["a disk", "S3"])
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    if request.param == "a disk":
        yield LocalStorage(folder)
        return
    pytest.importorskip("obstore")
    before = dict(os.environ)
    try:
        with s3_server(folder):
            yield S3Storage("tags", "under")
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def folder(place, request):
    made = place / f"of {request.node.originalname}"
    made.make_folder()
    return made


def test_a_file_is_created_once_and_by_one_of_many(folder):
    won = []
    threads = [
        threading.Thread(target=lambda n=n: won.append((folder / "a").create(b"%d" % n) and n))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [n for n in won if n is not False]
    assert (folder / "a").read() == b"%d" % winner
    assert not (folder / "a").create(b"later")


def test_a_file_is_replaced_renamed_and_deleted(folder):
    file = folder / "a"
    file.replace(b"one")
    file.replace("二".encode())
    assert file.read() == "二".encode()
    assert file.open().read() == "二".encode()
    assert file.size() == 3
    file.rename("b")
    assert not file.exists()
    assert (folder / "b").read() == "二".encode()
    (folder / "b").delete()
    (folder / "b").delete()  # nothing happens
    assert not (folder / "b").exists()


def test_what_is_not_there_is_a_file_not_found(folder):
    for asked in (folder / "a").read, (folder / "a").open, (folder / "a").size:
        with pytest.raises(FileNotFoundError):
            asked()
    assert (folder / "nowhere").entries() == []
    assert (folder / "nowhere").sizes() == {}
    assert not (folder / "nowhere").is_folder()


def test_a_folder_lists_what_is_in_it_and_goes_as_a_whole(folder):
    (folder / "deep").make_folder()
    (folder / "deep" / "猫").replace(b"12")
    (folder / "b").replace(b"1")
    (folder / "a").replace(b"")
    assert [entry.name for entry in folder.entries()] == ["a", "b", "deep"]
    assert folder.sizes() == {"a": 0, "b": 1, "deep/猫": 2}
    assert (folder / "deep").is_folder()
    hidden = (folder / "deep").hide("猫")
    assert not (folder / "deep" / "猫").exists()
    hidden.remove_tree()
    folder.remove_tree()
    assert folder.sizes() == {}


def test_one_owner_at_a_time(folder):
    busy = pytest.raises(IndexBusyError, match="is at work on this index")
    with folder.owned(), busy, folder.owned():
        pass
    with folder.owned():
        pass


def test_a_place_is_located_by_what_it_is_called(place, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(locate(str(place))) == str(place)
    assert type(locate(str(place))) is type(place)
    with pytest.raises(StorageError):
        LocalStorage(tmp_path / "file" / "below").make_folder()
