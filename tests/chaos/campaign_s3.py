"""The same protocol on an object store: a local S3 server that loses replies, is busy, is slow;
kills, races, leases.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import vault
from campaign_kills import find, undisturbed
from faults import (
    SUPPORT,
    Outcome,
    chance_of,
    compare,
    contents,
    finish,
    head_node,
    kill,
    light_build,
    make_workbench,
    reap,
    said,
    start,
)
from s3_server import s3_server, set_faults

from danbooru_index.errors import DanbooruIndexError
from danbooru_index.storage.s3 import S3Storage

SHARDS = 3
LEASE_S = 3


def object_store(seed: int, count: int, folder: Path) -> Outcome:
    """`count` builds under each kind of fault, `count` races for one name and for one index; all
    against one server.
    """
    outcome = Outcome()
    names = vault.shard_names(SHARDS)
    vault.build(folder / "b", names, model="b")
    expected = contents(folder / "b")
    with s3_server(folder) as url:
        for number in range(count):
            chosen = os.environ.get("CHAOS_NAMES")
            for kind in [chosen] if chosen else ["lost", "busy", "slow"]:
                index = f"s3://tags/{kind}{number}"
                set_faults(url, kind, 0.25, seed + number)
                try:
                    vault.build(index, names, model="b")
                except DanbooruIndexError as error:
                    outcome.problems.append(f"{kind} {number}: {error}")
                made = set_faults(url, "")
                outcome.add("builds under faults")
                outcome.problems += [
                    f"{kind} {number}: {problem}" for problem in compare(index, expected)
                ]
            if not chosen:
                _race_for_a_name(outcome, url, seed, number)
                _race_for_an_index(outcome, number, expected)
        for kind, times in made.items():
            outcome.add(f"requests with fault: {kind}", times)
    return outcome


def _race_for_a_name(outcome, url, seed, number):
    """Eight writers of one object, half of the replies lost: one content, and its writer can tell
    by reading it.
    """
    path = S3Storage("tags", f"names/{number}")
    set_faults(url, "lost", 0.5, seed + number)
    told, lock = [], threading.Lock()

    def write(content):
        created = path.create(content)
        with lock:
            told.append((created, content))

    threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    set_faults(url, "")
    stored = path.read()
    outcome.add("races for a name")
    winners = [content for created, content in told if created]
    outcome.expect(
        winners in ([], [stored]),
        f"race {number}: {winners} were told that they are first, {stored!r} is there",
    )


def _command(index, *options):
    options = ["--shards", SHARDS, "--model", "b", "--lease", LEASE_S, *options]
    return [sys.executable, SUPPORT / "vault.py", index, *options]


def _race_for_an_index(outcome, number, expected):
    """Four processes; the owner is killed; the next one owns the index when the lease has run out,
    not before.
    """
    index, token = f"s3://tags/race{number}", f"/tmp/race-{time.time_ns()}"
    gates = [Path(f"{token}.{n}") for n in range(4)]
    point = f"generation.started:kill:{token}:0"
    processes = [start(_command(index, "--wait", gate, "--failpoint", point)) for gate in gates]
    while not all(gate.exists() for gate in gates):
        time.sleep(0.005)
    for gate in gates:
        gate.unlink()
    codes = [finish(process) for process in processes]
    died = time.monotonic()
    outcome.add("races for an index")
    words = [said(p) for p, code in zip(processes, codes, strict=True) if code == 1]
    outcome.expect(sorted(codes) == [-9, 1, 1, 1], f"race {number}: {codes}")
    outcome.expect(
        all("is at work on this index" in word and "\n" not in word for word in words), f"{words}"
    )
    Path(token).unlink(missing_ok=True)
    longest = 0.0  # of the commands that were refused: how long one takes on this machine
    while True:
        began = time.monotonic()
        following = start(_command(index))
        code = finish(following)
        if code == 0 or began - died > LEASE_S + 20 or "is at work" not in said(following):
            break
        longest = max(longest, time.monotonic() - began)
    # The command that owns the index began before the lease had run out, or right after the last
    # refusal: no command that began later than the lease's end was refused.
    late = began - died - LEASE_S
    outcome.expect(
        code == 0 and late < longest + 1,
        f"race {number}: {code}, {late:.1f} s after the lease's end: {said(following)}",
    )
    outcome.counts["latest replacement, after the lease's end (s)"] = round(
        max(outcome.counts.get("latest replacement, after the lease's end (s)", -LEASE_S), late), 1
    )
    outcome.problems += [f"race {number}: {problem}" for problem in compare(index, expected)]


def kills_on_s3(seed: int, count: int, folder: Path) -> Outcome:
    """kill -9 of drivers and actors of real builds into an S3 index whose server loses replies now
    and then.
    """
    outcome = Outcome()
    bench = make_workbench(folder)
    with s3_server(folder) as url, head_node() as address:
        expected = undisturbed(bench, "--address", address)
        set_faults(url, "lost", 0.05, seed)
        number = killed = 0
        while killed < count:
            index = f"s3://tags/k{number}"
            command = light_build(
                bench, index, "--address", address, "--delay", "0.05", "--lease", str(LEASE_S)
            )
            killed += _killed_builds(
                outcome, command, chance_of(seed, "kills-s3", number), min(5, count - killed)
            )
            _finish_build(outcome, command, number)
            outcome.problems += [
                f"build {number}: {problem}" for problem in compare(index, expected)
            ]
            number += 1
        outcome.add("builds", number)
    return outcome


def _killed_builds(outcome, command, chance, quota) -> int:
    killed = 0
    while killed < quota:
        driver = start(command)
        end = time.monotonic() + chance.uniform(2.0, 12.0)
        target = chance.choice(["driver", "driver", "encoder", "tokenizer"])
        while time.monotonic() < end and driver.poll() is None:
            time.sleep(0.05)
        pid = find(target, driver.pid)
        if driver.poll() is None and pid is not None and kill(pid):
            killed += 1
            outcome.add("kills")
            outcome.add(f"kills of {target}")
        code = finish(driver)
        reap()
        if code == 0:
            break
        time.sleep(0.2 if target != "driver" else LEASE_S)
    return killed


def _finish_build(outcome, command, number):
    for _ in range(10):
        last = start(command)
        if finish(last) == 0:
            return
        time.sleep(1)
    outcome.problems.append(f"build {number} never finished: {said(last)[-500:]}")
