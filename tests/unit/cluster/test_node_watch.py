"""Nodes that join, leave and are all gone, as the driver sees them; durations."""

import logging

import pytest

from danbooru_index.cluster.node_watch import NodeWatch
from danbooru_index.durations import parse_duration, said_duration
from danbooru_index.errors import UsageError


def node(name, cpus=2, gpus=0, alive=True):
    return {
        "NodeID": name * 8,
        "Alive": alive,
        "NodeManagerHostname": f"host-{name}",
        "NodeManagerAddress": "192.0.2.1",
        "Resources": {"CPU": cpus, "GPU": gpus},
    }


class Cluster:
    def __init__(self, *nodes):
        self.nodes, self.now = list(nodes), 0.0

    def watch(self, gpus=0.0):
        return NodeWatch(1.0, gpus, 120.0, lambda: self.nodes, clock=lambda: self.now)


def test_those_that_leave_and_join_are_told_by_name(caplog):
    caplog.set_level(logging.INFO)
    cluster = Cluster(node("a"), node("b"))
    watch = cluster.watch()
    assert watch.look() == (set(), False)
    assert caplog.messages == []
    cluster.nodes = [node("a"), node("b", alive=False), node("c")]
    assert watch.look() == ({"bbbbbbbb"}, False)
    assert caplog.messages == [
        "node host-b (bbbbbbbb) is gone; what it had in hand is encoded elsewhere",
        "node host-c (cccccccc) has joined",
    ]
    assert watch.look() == (set(), False)


def test_a_node_that_cannot_hold_an_encoder_does_not_count(caplog):
    caplog.set_level(logging.INFO)
    cluster = Cluster(node("a", gpus=1), node("head", cpus=0))
    watch = cluster.watch(gpus=1.0)
    watch.look()
    cluster.nodes = [node("b", cpus=64), node("head", cpus=0)]
    assert watch.look() == ({"aaaaaaaa"}, False)
    assert caplog.messages[-1] == (
        "waiting for a node with a GPU: none is left, 0 s of 2 min (--wait-for-nodes)"
    )


def test_the_wait_is_told_once_a_minute_and_has_an_end(caplog):
    caplog.set_level(logging.INFO)
    cluster = Cluster(node("a"))
    watch = cluster.watch()
    watch.look()
    cluster.nodes = []
    ends = []
    for second in range(122):
        cluster.now = float(second)
        ends.append(watch.look()[1])
    assert ends == [False] * 121 + [True]
    assert sum("none is left" in message for message in caplog.messages) == 3
    cluster.nodes = [node("a")]
    assert watch.look()[1] is False
    cluster.nodes, cluster.now = [], 500.0
    assert watch.look()[1] is False  # counted anew


@pytest.mark.parametrize(("word", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_a_duration_is_a_number_with_a_unit(word, seconds):
    assert parse_duration(word, "--wait-for-nodes") == seconds


@pytest.mark.parametrize("word", ["", "30", "m", "-5m", "5 minutes", "inf", "1e400s", "nan"])
def test_anything_else_is_refused(word):
    with pytest.raises(UsageError, match="--wait-for-nodes takes a number"):
        parse_duration(word, "--wait-for-nodes")


def test_seconds_are_said_in_the_unit_that_fits():
    assert [said_duration(s) for s in (0, 89, 90, 1800, 21_600)] == [
        "0 s",
        "89 s",
        "2 min",
        "30 min",
        "6 h",
    ]
