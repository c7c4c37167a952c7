"""When an idle encoder is given a shard that another has begun."""

import pytest

from danbooru_index.pipeline.backup_tasks import BackupTasks
from danbooru_index.pipeline.progress_actor import ProgressActor


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tasks(clock):
    """Ten shards of 100 rows have taken 10 s each."""
    made = BackupTasks(clock)
    for number in range(10):
        made.begin(f"done{number}", "a:1")
        clock.now += 10
        made.end(f"done{number}", "a:1", 100)
    return made


def test_nothing_is_given_before_it_is_late(tasks, clock):
    tasks.begin("slow", "a:1")
    tasks.offer({"slow": (b"task", 100)})
    clock.now += 15  # 1.5 times as long as usual, and the grace is still to come
    assert tasks.claim("b:1") == b""
    clock.now += 2
    assert tasks.claim("b:1") == b"task"


def test_a_larger_shard_may_take_longer(tasks, clock):
    tasks.begin("large", "a:1")
    tasks.offer({"large": (b"task", 1000)})
    clock.now += 100
    assert tasks.claim("b:1") == b""
    clock.now += 60
    assert tasks.claim("b:1") == b"task"


def test_what_is_latest_is_given_first_and_each_shard_to_another_encoder(tasks, clock):
    tasks.begin("first", "a:1")
    clock.now += 30
    tasks.begin("second", "a:1")
    tasks.offer({"second": (b"second", 100), "first": (b"first", 100)})
    clock.now += 20
    assert tasks.claim("a:1") == b""  # the encoder that has it
    assert tasks.claim("b:1") == b"first"
    assert tasks.claim("c:1") == b"second"
    assert tasks.claim("d:1") == b""  # both have just been begun again
    clock.now += 20
    assert tasks.claim("b:1") == b"second"  # the third attempt: c:1 is late too


def test_a_shard_that_is_done_is_given_to_nobody(tasks, clock):
    tasks.begin("slow", "a:1")
    tasks.offer({"slow": (b"task", 100)})
    clock.now += 100
    tasks.settle("slow")
    tasks.offer({"slow": (b"task", 100)})
    assert tasks.claim("b:1") is None


def test_what_nobody_has_begun_may_be_on_its_way_unless_a_node_has_gone(tasks, clock):
    tasks.offer({"queued": (b"task", 100)})
    clock.now += 20
    assert tasks.claim("b:1") == b""
    tasks.node_gone("a")
    assert tasks.claim("b:1") == b"task"


def test_what_a_node_had_in_hand_is_late_as_soon_as_it_is_gone(tasks, clock):
    tasks.offer({"lost": (b"task", 100)})
    clock.now += 40
    tasks.begin("lost", "a:7")
    assert tasks.claim("b:1") == b""
    tasks.node_gone("a")
    assert tasks.claim("b:1") == b"task"


def test_an_encoder_without_work_gets_ready_once_shards_are_on_offer(tasks):
    assert tasks.claim("b:1") is None
    tasks.begin("slow", "a:1")
    tasks.offer({"slow": (b"task", 100)})
    assert tasks.claim("b:1") == b""
    tasks.settle("slow")
    assert tasks.claim("b:1") is None


def test_encoders_are_kept_to_help_unless_nothing_happens_for_long(tasks, clock):
    clock.now += 1000
    assert tasks.may_help()  # nothing is on offer: the driver knows what is still to come
    tasks.begin("slow", "a:1")
    tasks.offer({"slow": (b"task", 100)})
    for happens in (tasks.active, lambda: tasks.claim("b:1"), lambda: tasks.begin("other", "a:1")):
        clock.now += 59
        assert tasks.may_help()
        happens()
    clock.now += 61
    assert not tasks.may_help()
    tasks.settle("slow")
    assert tasks.may_help()


def test_encoders_may_take_long_to_start(clock):
    tasks = BackupTasks(clock)
    tasks.offer({"first": (b"task", 100)})
    clock.now += 1799
    assert tasks.may_help()
    clock.now += 2
    assert not tasks.may_help()


def test_before_any_shard_is_done_nothing_is_known_to_be_late(clock):
    tasks = BackupTasks(clock)
    tasks.begin("slow", "a:1")
    tasks.offer({"slow": (b"task", 100)})
    clock.now += 1000
    assert tasks.claim("b:1") == b""


def test_what_an_encoder_completed_is_told_until_the_driver_knows():
    """An answer that comes too late is lost: the next has it again."""
    told = ProgressActor()
    told.begin("one", "a:1")
    told.report("one", 30)
    told.report("two", 5)
    assert told.underway([]) == (35, {})
    told.end("one", "a:1", 60, "vm")
    assert told.underway([])[1] == {"one": (60, "vm")}
    assert told.underway([])[1] == {"one": (60, "vm")}
    assert told.underway(["one"]) == (5, {})
    told.report("one", 60)  # a second attempt goes on
    assert told.underway([]) == (5, {})
    assert told.may_help()
