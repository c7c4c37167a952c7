"""Shards in an object store (moto on loopback): found, opened by ranges, never of two versions."""

import io

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import one_line, run_cli
from s3_server import s3_server

from danbooru_index.errors import InputError
from danbooru_index.ingest.parquet import open_input
from danbooru_index.ingest.scan import scan
from danbooru_index.ingest.shard_files import find_parquet
from danbooru_index.ingest.shards import read_shard
from danbooru_index.storage import s3_reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A function that puts an object."""
    with s3_server(tmp_path_factory.mktemp("s3"), "shards") as url:
        client = boto3.client("s3", endpoint_url=url)
        yield lambda name, content: client.put_object(Bucket="shards", Key=name, Body=content)


def parquet(count, word="text", **options):
    """A Parquet file of so many records."""
    rows = [{"id": str(n), "text": f"{word} {n}"} for n in range(count)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def test_a_prefix_one_object_and_what_is_not_there(bucket, tmp_path):
    bucket("a/2.parquet", parquet(5))
    bucket("a/1.PARQUET", parquet(7))
    for name in ("a/_tmp/3.parquet", "a/.4.parquet", "a/notes.txt"):
        bucket(name, b"no")
    names = ["s3://shards/a/1.PARQUET", "s3://shards/a/2.parquet"]
    assert find_parquet("s3://shards/a") == find_parquet("s3://shards/a/") == names
    assert find_parquet(names[1]) == names[1:]
    with pytest.raises(InputError, match=r"s3://shards/b: no \.parquet object under this prefix"):
        find_parquet("s3://shards/b")
    with pytest.raises(InputError, match=r"s3://elsewhere/a: cannot be used .* check the bucket"):
        find_parquet("s3://elsewhere/a")
    words = ["--index", tmp_path / "index", "--model", "m3-mini", "--device", "cpu"]
    line = one_line(run_cli("build", "s3://shards/b", *words), 1)
    assert "s3://shards/b: no .parquet object under this prefix" in line
    assert "only s3:// is known" in one_line(run_cli("build", "gs://shards/b", *words), 2)


def test_a_shard_is_read_in_ranges_and_known_by_its_content(bucket, tmp_path, monkeypatch):
    """The same shards, with the same ids, as of the same files on a disk."""
    monkeypatch.setattr(s3_reader, "BUFFER", 1 << 10)
    content = parquet(3000, row_group_size=500)
    bucket("b/1.parquet", content)
    bucket("b/2.parquet", content)
    (tmp_path / "1.parquet").write_bytes(content)
    (tmp_path / "2.parquet").write_bytes(content)
    here, there = scan(str(tmp_path)), scan("s3://shards/b")
    assert there.digest == here.digest
    assert [shard.id for shard in there.shards] == [shard.id for shard in here.shards]
    for shard, other in zip(there.shards, here.shards, strict=True):
        assert read_shard(shard)[0].equals(read_shard(other)[0])
    bucket("b/1.parquet", parquet(3000, "other"))
    with pytest.raises(InputError, match=r"b/1\.parquet: changed since the build began"):
        read_shard(there.shards[0])


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(bucket, monkeypatch):
    monkeypatch.setattr(s3_reader, "BUFFER", 1 << 10)
    bucket("c.parquet", b"x" * 10_000)
    with open_input("s3://shards/c.parquet") as opened:
        assert opened.file.read(100) == b"x" * 100
        assert opened.file.seek(-10, io.SEEK_END) == 9_990
        assert opened.file.read() == b"x" * 10
        bucket("c.parquet", b"y" * 10_000)
        opened.file.seek(5_000)
        with pytest.raises(OSError, match="cannot be used"):
            opened.file.read(100)
