"""Fragments: written whole or not at all, digested, out of the page cache once durable."""

import os

import numpy as np
import pytest
from vault import SPECS, make_encoding, make_records, manifest, verify_all, write_shard

from danbooru_index.errors import StorageError
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.schema import TableDigest, count_non_finite, table_path, to_rows
from danbooru_index.storage import local as durable
from danbooru_index.storage.local import LocalStorage


def test_a_write_that_does_not_fit_is_an_error_and_leaves_nothing(index):
    """A limit on the file size: Lance may swallow the error of the last write; the reread
    must not.
    """
    import resource
    import signal

    generation = index.start(manifest(["a"]))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes = set()
    for limit in range(200, 12_000, 293):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            _, record, _ = write_shard(generation, "a", finish=False)
            outcomes.add("written")
        except StorageError:
            outcomes.add("refused")
            continue
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert verify_all(generation, [record]) == []
    assert outcomes == {"written", "refused"}


def test_a_digest_does_not_depend_on_batches_and_notices_every_change():
    records, encoding = make_records(40), make_encoding(40)
    for spec in SPECS:
        table = to_rows(spec, records, "s", encoding)
        whole, parts = TableDigest(), TableDigest()
        whole.update(table)
        for start in range(0, 40, 7):
            parts.update(table.slice(start, 7))
        assert whole.hexdigest() == parts.hexdigest()
        swapped = TableDigest()
        swapped.update(table.take([1, 0, *range(2, 40)]))
        assert swapped.hexdigest() != whole.hexdigest()
        other = TableDigest()
        other.update(to_rows(spec, records, "t", encoding))
        assert other.hexdigest() != whole.hexdigest()


def test_non_finite_values_are_refused(index):
    generation = index.start(manifest(["a"]))
    encoding = make_encoding(5)
    encoding.colbert[2, 3] = np.inf
    assert count_non_finite(to_rows(SPECS[2], make_records(5), "a", encoding), "vectors") == 1
    with pytest.raises(StorageError, match="1 non-finite values for table colbert"):
        ShardWriter(generation.path, "a", SPECS).write(make_records(5), encoding)


def is_cached(path):
    """Whether the first bytes of a file are in memory."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(16)], 0, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_large_colbert_files_leave_memory_once_they_are_durable(index, tmp_path, monkeypatch, size):
    """The others stay: they are indexed and searched next."""
    monkeypatch.setattr(durable, "WORTH_UNCACHING", size)
    probe = tmp_path / "probe"
    probe.write_bytes(b"p" * 4096)
    LocalStorage(probe).sync()
    with probe.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(probe):
        pytest.skip("this file system is in memory")
    generation = index.start(manifest(["a"]))
    write_shard(generation, "a")
    cached = {
        name: all(
            map(is_cached, (table_path(generation.path, name).local_path() / "data").iterdir())
        )
        for name in ("dense", "sparse", "colbert")
    }
    assert cached == {"dense": True, "sparse": True, "colbert": size > 0}
