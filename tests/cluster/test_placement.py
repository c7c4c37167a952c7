"""What every node must see: the index, the shards, the model; on a shared file system and on S3.

A node that does not is made by a mount namespace of its own.
"""

import shutil
import subprocess
from contextlib import ExitStack

import boto3
import pytest
from faults import compare
from hub import serve
from node_jobs import job, nothing_lost
from nodes import NAMESPACE, cluster
from processes import wait_for
from s3_server import s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GPU = {"num_cpus": 1, "num_gpus": 1}


def needs_namespaces(folder):
    """Skip where no folder can be hidden from a process."""
    (folder / "one").mkdir()
    command = [*NAMESPACE, "mount", "--bind", str(folder), str(folder / "one")]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no mount namespace may be made here (unshare --mount)")


@pytest.fixture(scope="module")
def pair():
    """A cluster of one GPU node, to which tests add another."""
    with cluster(nodes=[GPU]) as nodes:
        yield nodes


def refused(made):
    """The one line of a build that began nothing."""
    made.ended(code=1)
    assert made.begun == []
    last = made.err[-1][1]
    assert last.startswith("danbooru-index: node ")
    assert last.endswith("nothing was encoded")
    return last


@pytest.mark.long
def test_a_node_that_does_not_see_the_shards_or_sees_others(bench, expected, pair, tmp_path):
    """One line before anything is encoded; without that node the same command builds all."""
    needs_namespaces(tmp_path)
    nowhere, other = tmp_path / "nowhere", tmp_path / "other"
    nowhere.mkdir()
    shutil.copytree(bench.shards, other)
    for shard in other.glob("*.parquet"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    for hidden, words in ((nowhere, "no such file there"), (other, "another file there")):
        number = pair.add_blind({bench.shards: hidden}, **GPU)
        with job(bench, f"shards{words[0]}", pair.address, "--gpus") as made:
            line = refused(made)
            assert f"{bench.shards}/" in line
            assert f".parquet: {words}; put it where every node sees the same" in line
        pair.remove(number)


@pytest.mark.long
@pytest.mark.release
def test_a_node_that_does_not_see_the_index_and_one_that_joins_too_late(
    bench, expected, pair, tmp_path
):
    """Where it joins while others work, the build ends with its line, and goes on without it."""
    needs_namespaces(tmp_path)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "indexes").mkdir()
    index = tmp_path / "indexes" / "index"
    hidden = {index.parent: tmp_path / "nowhere"}
    number = pair.add_blind(hidden, **GPU)
    with job(bench, "unseen", pair.address, "--gpus", index=index) as made:
        assert f"{index}/generations/" in (line := refused(made))
        assert "no such folder there" in line
    pair.remove(number)
    with job(bench, "late", pair.address, "--gpus", "--delay", "1", index=index) as made:
        wait_for(lambda: len(made.begun) >= 3)
        number = pair.add_blind(hidden, **GPU)
        made.ended(code=1)
        assert "no such folder there" in made.err[-1][1]
    pair.remove(number)
    with job(bench, "after", pair.address, "--gpus", index=index) as made:
        assert made.ended()["shards"]["skipped"] > 0
        assert compare(index, expected) == []


@pytest.mark.long
@pytest.mark.release
def test_a_model_of_the_hub_is_fetched_once_a_node(bench, pair, tmp_path):
    """Two encoders and the tokenisers of a node share what it fetched; without a network the line
    says so.
    """
    needs_namespaces(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "there").mkdir()
    hidden = {tmp_path / "home": tmp_path / "there"}
    with ExitStack() as stack:
        hub = stack.enter_context(serve({"org/m3": bench.model}))
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        number = pair.add_blind(hidden, num_cpus=2, num_gpus=2)
        with job(
            bench, "hub", pair.address, "--gpus", "--together", "3", model="org/m3", env=env
        ) as made:
            made.ended()
            assert len({process for _, process, _ in made.begun}) == 3
        asked = [path for verb, path in hub.requests if verb == "GET" and "/resolve/" in path]
        assert {asked.count(path) for path in asked} == {2}
        pair.remove(number)
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "there").mkdir()
    number = pair.add_blind(hidden, **GPU)
    with job(bench, "offline", pair.address, "--gpus", model="org/m3", env=env) as made:
        line = refused(made)
        assert "put the model on shared storage (org/m3: http://127.0.0.1" in line
        assert "cannot be reached" in line
    pair.remove(number)


@pytest.mark.long
@pytest.mark.release
def test_shards_and_index_on_s3_and_a_node_with_another_server(bench, expected, tmp_path):
    with s3_server(tmp_path) as url, cluster(nodes=[GPU, GPU]) as nodes:
        client = boto3.client("s3", endpoint_url=url)
        for shard in bench.shards.glob("*.parquet"):
            client.upload_file(str(shard), "tags", f"shards/{shard.name}")
        places = {"shards": "s3://tags/shards", "index": "s3://tags/index"}
        with job(bench, "s3", nodes.address, "--gpus", "--delay", "0.5", **places) as made:
            made.ended()
            assert len(made.nodes()) == 2
            nothing_lost(made, expected, 2)
        (tmp_path / "other").mkdir()
        with s3_server(tmp_path / "other") as other:
            nodes.add_blind({}, {"AWS_ENDPOINT_URL": other}, **GPU)
            places["index"] = "s3://tags/index2"
            env = {"AWS_ENDPOINT_URL": url}
            with job(bench, "s3b", nodes.address, "--gpus", env=env, **places) as made:
                line = refused(made)
                assert "s3://tags/index2/generations/" in line
                assert "no such folder there" in line
