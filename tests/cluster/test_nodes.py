"""A build on several nodes: uneven ones, that leave and join; with the light encoder on logical
GPUs and CPUs, and with a real checkpoint.
"""

import json
import os
import random
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
from faults import compare
from node_jobs import CALLS, LIGHT, job, nothing_lost
from nodes import autoscaling_cluster, cluster
from processes import run_cli, running, wait_for

from danbooru_index.index.status import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GPU = {"num_cpus": 1, "num_gpus": 1}


@pytest.fixture(scope="module")
def ring():
    """A head without CPUs, to which each test adds its nodes."""
    with cluster() as made:
        yield made


@contextmanager
def joined(ring, *sizes):
    """Some nodes of the cluster, and those that are added in the block; none is left after it."""
    try:
        for size in sizes:
            ring.add(**size)
        yield ring
    finally:
        ring.clear()


@pytest.mark.long
def test_nodes_of_several_sizes_one_of_which_leaves_and_one_joins(ring, bench, expected):
    """All work; stdout holds the report alone, stderr says who left and who joined."""
    with (
        joined(ring, GPU, {"num_cpus": 2, "num_gpus": 2}) as nodes,
        job(bench, "uneven", nodes.address, "--gpus", "--hold", bench.folder / "go") as made,
    ):
        wait_for(lambda: len(made.nodes()) == 2 and len(made.begun) >= 3 * CALLS)
        at_first = set(made.nodes())
        nodes.remove(0)
        nodes.add(**GPU)
        wait_for(lambda: len(made.nodes()) == 3)
        (bench.folder / "go").touch()
        report = made.ended()
        assert report["shards"]["done"] == 78
        nothing_lost(made, expected, 3, gone=1)
        assert any("is gone" in line for _, line in made.err)
        assert any("has joined" in line for _, line in made.err)
        assert len(set(made.nodes()) - at_first) == 1, "the node that joined got no work"


@pytest.mark.long
@pytest.mark.release
def test_every_gpu_of_nodes_with_one_two_and_four_has_an_encoder(ring, bench, expected):
    sizes = [{"num_cpus": cpus, "num_gpus": gpus} for cpus, gpus in ((1, 1), (1, 2), (2, 4))]
    with (
        joined(ring, *sizes) as nodes,
        job(bench, "seven", nodes.address, "--gpus", "--together", "7") as made,
    ):
        made.ended()
        assert len({process for _, process, _ in made.begun}) == 7
        assert len(made.nodes()) == 3
        nothing_lost(made, expected, 7)


def goes_at(made, moment, leave, gone):
    """Once so many shards have begun a node leaves, the `gone`-th; the others go on."""
    wait_for(lambda: len(made.begun) >= moment)
    leave()
    made.said("is gone", times=gone)
    begun = len(made.begun)
    wait_for(lambda: len(made.begun) > begun or made.process.poll() is not None, timeout=30)


@pytest.mark.long
def test_nodes_leave_one_after_the_other_at_random_moments(ring, bench, expected):
    """Two are killed, one is told to go: SIGTERM to the raylet, as before a spot machine is taken.
    Those that stay go on at once, and what the others had in hand follows.
    """
    moments = random.Random(0)
    with (
        joined(ring, GPU, GPU, GPU, GPU) as nodes,
        job(bench, "removed", nodes.address, "--gpus", "--delay", "2") as made,
    ):
        goes_at(made, moments.randint(4, 20), lambda: nodes.remove(0), 1)
        goes_at(made, moments.randint(24, 40), lambda: nodes.terminate(1), 2)
        goes_at(made, moments.randint(44, 60), lambda: nodes.remove(2), 3)
        made.ended()
        nothing_lost(made, expected, 4, gone=3)


@pytest.mark.long
def test_what_a_slow_encoder_still_holds_is_done_by_those_without_work(ring, bench, expected):
    """One of four takes ten times as long. Once all rows are handed out the others are still there:
    they do its last shards again, and the build waits for none of its own passes of 20 s.
    """
    with (
        joined(ring, {"num_cpus": 2, "num_gpus": 4}) as nodes,
        job(
            bench, "slow", nodes.address, "--gpus", "--delay", "2", "--together", "4",
            "--slow", bench.folder / "slow.token",
        ) as made,
    ):  # fmt: skip
        made.ended()
        begun = Counter(digest for digest, _, _ in made.begun)
        slow = Counter(process for _, process, _ in made.begun).most_common()[-1][0]
        again = {digest for digest, _, _ in made.begun if begun[digest] > 1}
        assert {digest for digest, process, _ in made.begun if process == slow} & again
        nothing_lost(made, expected, 4)


@pytest.mark.long
@pytest.mark.release
def test_a_node_removed_as_it_writes(ring, bench, expected):
    """An encoder pauses between its fragments and their record; a node goes meanwhile."""
    with (
        joined(ring, GPU, GPU, GPU) as nodes,
        job(
            bench, "writing", nodes.address, "--gpus", "--delay", "0.5",
            "--failpoint", f"encode.before_record:pause:{bench.folder / 'token'}:9",
        ) as made,
    ):  # fmt: skip
        wait_for(lambda: (bench.folder / "token").exists() or len(made.begun) > 40)
        nodes.remove(0)
        made.ended()
        nothing_lost(made, expected, 3, gone=1)


@pytest.mark.long
def test_a_node_without_gpus_that_joins_gets_work(ring, bench, expected):
    """On CPUs too; the head has none. Shards take 5 s each until it does."""
    go = bench.folder / "joined"
    with (
        joined(ring, {"num_cpus": 2}) as nodes,
        job(bench, "cpus", nodes.address, "--hold", go, "--hold-s", "5") as made,
    ):
        wait_for(lambda: len(made.begun) >= CALLS)
        at_first = set(made.nodes())
        nodes.add(num_cpus=2)
        wait_for(lambda: set(made.nodes()) - at_first, timeout=150)
        go.touch()
        made.ended()
        nothing_lost(made, expected, 2)


@pytest.mark.long
def test_all_nodes_gone_are_waited_for_then_the_build_ends_and_goes_on_later(ring, bench, expected):
    """Once another comes in time; once none does: exit code 1, and the same command goes on."""
    with joined(ring, GPU) as nodes:
        options = ["--gpus", "--delay", "0.5", "--wait-for-nodes", "25"]
        with job(bench, "gone", nodes.address, *options) as made:
            wait_for(lambda: len(made.begun) >= 9)
            nodes.remove(0)
            made.said("waiting for a node with a GPU: none is left")
            again = nodes.add(**GPU)
            wait_for(lambda: len(made.nodes()) == 2)
            nodes.remove(again)
            made.ended(code=1)
            last = made.err[-1][1]
            assert "no node of the cluster could work for 25 s (--wait-for-nodes)" in last
            assert "run the same command to go on" in last
        nodes.add(**GPU)
        with job(bench, "gone", nodes.address, "--gpus") as again:
            report = again.ended()
            assert report["shards"]["skipped"] > 0
        assert compare(again.index, expected) == []


@pytest.mark.long
@pytest.mark.release
def test_a_real_checkpoint_on_two_nodes_with_logical_gpus(
    ring, sample_shards, checkpoint, tmp_path
):
    index = tmp_path / "index"
    with joined(ring, GPU, GPU) as nodes:
        command = [sys.executable, LIGHT, sample_shards, index, checkpoint, "--real", "--gpus"]
        command += ["--address", nodes.address]
        with running([str(word) for word in command]) as process:
            out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["records"] == 468
    assert verify(str(index)).problems == []


@pytest.mark.long
def test_from_no_gpu_node_at_all_the_build_asks_for_one(bench, expected):
    types = {
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        }
    }
    with (
        autoscaling_cluster(types) as address,
        job(bench, "zero", address, "--gpus", "--delay", "0.2") as made,
    ):
        made.said("asking the cluster's autoscaler for a node with a GPU", timeout=120)
        report = made.ended()
        assert report["shards"]["done"] == 78
        nothing_lost(made, expected, 2)


@pytest.mark.long
def test_an_autoscaler_without_gpu_types_is_a_cluster_without_gpus(bench):
    types = {
        "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1}
    }
    with autoscaling_cluster(types) as address, job(bench, "never", address, "--gpus") as made:
        made.ended(code=1)
        assert "this cluster has no GPU" in made.err[-1][1]


def test_a_time_that_is_none_is_refused(tmp_path):
    words = ["build", tmp_path, "--index", tmp_path / "i", "--wait-for-nodes", "soon"]
    refused = run_cli(*words)
    assert refused.returncode == 2
    assert "--wait-for-nodes takes a number and s, m, h or d" in refused.stderr


def test_lines_as_json_and_what_is_left_out_accepted(tmp_path, sample_shards, checkpoint):
    """Each line of stderr is one object; the shards are among them; the last says why it ended."""
    words = ["--model", checkpoint, "--device", "cpu", "--log-format", "json", "--json"]
    built = run_cli("build", sample_shards, "--index", tmp_path / "i", *words)
    assert built.returncode == 0, built.stderr
    lines = [json.loads(line) for line in built.stderr.splitlines()]
    assert all({"time", "level", "event", "message"} <= line.keys() for line in lines)
    done = [line for line in lines if line["event"] == "shard_done"]
    assert len({line["shard"] for line in done}) == 8
    assert sum(line["records"] for line in done) == 468
    assert {line["node"] for line in done} == {os.uname().nodename}
    refused = run_cli("build", tmp_path / "gone", "--index", tmp_path / "i", *words)
    assert refused.returncode == 1
    last = json.loads(refused.stderr.splitlines()[-1])
    assert (last["level"], last["event"], last["exit_code"]) == ("error", "ended", 1)
    assert str(tmp_path / "gone") in last["message"]
    wrong = run_cli("build", sample_shards, "--index", tmp_path / "i", "--log-format", "xml")
    assert wrong.returncode == 2
    assert "--log-format takes text or json" in wrong.stderr
