"""The input is read once for its ids and digests, and once more for its samples: opens of each file
are counted by the kernel (inotify), whoever opens it."""

import contextlib
import ctypes
import os
import struct
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danbooru_index.choices import Device
from danbooru_index.config import BuildConfig
from danbooru_index.ingest.sampling import draw_samples
from danbooru_index.ingest.scan import scan
from danbooru_index.pipeline.reading import read_input
from danbooru_index.progress import StartUp

IN_OPEN = 0x20
EVENT = struct.Struct("iIII")


@contextlib.contextmanager
def opens(folder):
    """Counts, by name, how often each file of a folder is opened inside the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(folder), IN_OPEN) < 0:
        pytest.skip("no inotify here")
    counted = Counter()
    try:
        yield counted
        with contextlib.suppress(BlockingIOError):
            while events := os.read(watch, 1 << 16):
                while events:
                    *_, length = EVENT.unpack_from(events)
                    name = events[EVENT.size : EVENT.size + length].rstrip(b"\0").decode()
                    counted[name] += bool(name)  # the folder itself has none
                    events = events[EVENT.size + length :]
    finally:
        os.close(watch)


def names_of(folder):
    return {path.name for path in folder.glob("*.parquet")}


def test_a_scan_opens_every_file_once(sample_shards):
    with opens(sample_shards) as counted:
        found = scan(str(sample_shards))
    assert found.rows == 468
    assert {name: counted[name] for name in names_of(sample_shards)} == dict.fromkeys(
        names_of(sample_shards), 1
    )


def test_samples_open_only_the_shards_they_come_from_and_each_once(sample_shards):
    shards = scan(str(sample_shards)).shards
    with opens(sample_shards) as counted:
        samples = draw_samples(shards, projected=True)
    assert samples.checked
    assert samples.projection
    opened = {name: counted[name] for name in names_of(sample_shards) if counted[name]}
    assert opened
    assert set(opened.values()) == {1}


def test_all_that_a_build_reads_before_ray_starts_is_two_readings(
    sample_shards, tmp_path, checkpoint
):
    config = BuildConfig(
        str(sample_shards), str(tmp_path / "index"), model=str(checkpoint), device=Device.CPU
    )
    with opens(sample_shards) as counted, StartUp() as start_up:
        reading = read_input(config, start_up)
        reading.samples.result()
    assert {counted[name] for name in names_of(sample_shards)} <= {1, 2}


def test_only_a_file_that_may_repeat_an_id_is_opened_again(tmp_path):
    for number, ids in enumerate((["1", "2"], ["3", "4"], ["2", "5"])):
        table = pa.table({"id": ids, "text": [f"t{i}" for i in ids]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    with opens(tmp_path) as counted:
        found = scan(str(tmp_path))
    assert [shard.drop for shard in found.shards] == [(), (), (0,)]
    assert counted["0.parquet"] == 2
    assert counted["1.parquet"] == 1
    assert counted["2.parquet"] == 2
