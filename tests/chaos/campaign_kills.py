"""kill -9 of drivers, actors and Ray's own processes, at random moments and at every named point of
the protocol.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
from faults import (
    Outcome,
    Workbench,
    chance_of,
    compare,
    contents,
    descendants,
    end_descendants,
    finish,
    head_node,
    kill,
    light_build,
    make_workbench,
    reap,
    said,
    start,
)

from danbooru_index.failpoints import ACTOR_POINTS, DRIVER_POINTS
from danbooru_index.index.catalog import IndexRoot

SHARD_ROWS = 12
IN_FLIGHT = 4  # shards that an encoder holds: max_tasks_in_flight_per_actor, with one encoder
TARGETS = {
    "driver": "",
    "encoder": "EncodeShard",
    "tokenizer": "TokenizeShard",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}


def undisturbed(bench: Workbench, *options: str) -> dict:
    """Build once in peace: what every disturbed build must equal."""
    process = start(light_build(bench, bench.index("undisturbed"), *options))
    code = finish(process)
    if code != 0:
        raise RuntimeError(f"the undisturbed build ended with {code}: {said(process)[-2000:]}")
    return contents(bench.index("undisturbed"))


def find(target: str, driver: int) -> int | None:
    """The process id of a target, among our own descendants."""
    if target == "driver":
        return driver
    for process in descendants():
        try:
            if TARGETS[target] in " ".join(process.cmdline()):
                return process.pid
        except psutil.Error:
            continue
    return None


def kills(seed: int, count: int, folder: Path, *, real: bool = False, level: str = "") -> Outcome:
    """`count` kills over builds of 39 shards, about ten a build; each build then finishes and is
    compared.
    """
    outcome = Outcome()
    bench = make_workbench(folder, shard_rows=SHARD_ROWS)
    expected = undisturbed(bench, *(["--real"] if real else []))
    number = 0
    while outcome.counts.get("kills", 0) < count:
        chance = chance_of(seed, "kills", level, number)
        private = level == "ray" or chance.random() < 0.3
        quota = min(chance.randint(5, 12), count - int(outcome.counts.get("kills", 0)))
        with nullcontext(None) if private else head_node() as address:
            options = ["--real"] if real else ["--delay", "0.05"]
            options += [] if private else ["--address", address]
            targets = (
                ["raylet", "gcs"]
                if level == "ray"
                else ["driver", "encoder", "encoder", "tokenizer"]
            )
            targets += ["raylet"] if private and level != "ray" else []
            _round(outcome, bench, number, quota, chance, targets, options, expected)
        end_descendants()
        number += 1
    outcome.add("builds", number)
    return outcome


def _round(outcome, bench, number, quota, chance, targets, options, expected):
    index, log = bench.index(f"i{number}"), bench.folder / f"log{number}"
    command = light_build(bench, index, *options, "--log", str(log))
    killed = 0
    while killed < quota:
        driver = start(command)
        while killed < quota and driver.poll() is None:
            target = chance.choice(targets)
            wait = (
                chance.uniform(0.0, 9.0)
                if target in ("driver", "raylet", "gcs")
                else chance.uniform(0.1, 2.0)
            )
            end = time.monotonic() + wait
            while time.monotonic() < end and driver.poll() is None:
                time.sleep(0.02)
            pid = find(target, driver.pid)
            if driver.poll() is None and pid is not None and kill(pid):
                killed += 1
                outcome.add("kills")
                outcome.add(f"kills of {target}")
            if target in ("driver", "raylet", "gcs"):
                break
        finish(driver)
        # Its orphans live on beside the next driver; or all of its Ray is ended. Never the workers
        # of a shared Ray: for one that dies before it is registered a raylet waits 60 s.
        if "--address" not in options and chance.random() < 0.5:
            end_descendants()
        reap()
        if driver.returncode == 0:
            break
    for _ in range(4):
        last = start(command)
        if finish(last) == 0:
            break
    outcome.expect(
        last.returncode == 0,
        f"build {number} never finished: {last.returncode} {said(last)[-500:]}",
    )
    if last.returncode == 0:
        for problem in compare(index, expected):
            outcome.problems.append(f"build {number}: {problem}")
        outcome.expect(
            len(IndexRoot(index).generations()) == 1, f"build {number}: more than one generation"
        )
        _count_rework(outcome, index, log, killed, number)


def _count_rework(outcome, index, log, killed, number):
    """Shards encoded more than once, from the encoder's own log: the sampled texts of the
    self-check are no shard.
    """
    if not log.exists():
        return
    shards = len(IndexRoot(index).current().manifest.shards)
    begun = [line.split() for line in log.read_text().splitlines()]
    again = sum(1 for rows, *_ in begun if rows == str(SHARD_ROWS)) - shards
    outcome.add("shards encoded again", again)
    outcome.add("most that may be", IN_FLIGHT * killed)
    outcome.expect(
        again <= IN_FLIGHT * killed,
        f"build {number}: {again} shards encoded again after {killed} kills",
    )


def kills_with_the_real_encoder(seed: int, count: int, folder: Path) -> Outcome:
    return kills(seed, count, folder, real=True)


def kills_of_ray(seed: int, count: int, folder: Path) -> Outcome:
    return kills(seed, count, folder, level="ray")


def failpoints(seed: int, count: int, folder: Path) -> Outcome:
    """A kill at every named point, `count` times each, at its first, second, third ...
    occurrence.
    """
    outcome = Outcome()
    bench = make_workbench(folder, shard_rows=SHARD_ROWS)
    points = list(ACTOR_POINTS + DRIVER_POINTS)
    chance = chance_of(seed, "failpoints")
    if chosen := os.environ.get("CHAOS_NAMES"):
        points, count = chosen.split(","), 1
    elif count < 1:
        points, count = chance.sample(points, -count), 1
    with head_node() as address:
        expected = undisturbed(bench, "--address", address)
        for name in points:
            fired = 0
            for number in range(count):
                fired += _at_failpoint(outcome, bench, address, name, number, expected)
                reap()
            outcome.expect(fired == count, f"{name}: reached {fired} of {count} times")
            outcome.add("points")
    return outcome


def _at_failpoint(outcome, bench, address, name, number, expected) -> bool:
    index, token = bench.index(f"{name}-{number}"), bench.folder / f"token-{name}-{number}"
    # Points of the driver are reached a few times at most; the pause in an actor is 0 to 2 shards
    # in.
    skip = number if name in ACTOR_POINTS and name not in ("encode.check",) else 0
    if name.startswith(("replace.", "commit.")):
        skip = number
    if name.startswith("publish.") or name in ("replace.before_rename", "replace.after_rename"):
        _publish_something_first(bench, address, index)
    first = start(
        light_build(
            bench, index, "--address", address, "--failpoint", f"{name}:kill:{token}:{skip}"
        )
    )
    code = finish(first)
    outcome.add("kills", token.exists())
    if name in DRIVER_POINTS:
        outcome.expect(
            code == -signal.SIGKILL, f"{name}: the driver ended with {code}: {said(first)[-300:]}"
        )
    elif code != 0:
        outcome.add("builds that had to be resumed")
    if code != 0:
        again = start(light_build(bench, index, "--address", address))
        code = finish(again)
        outcome.expect(
            code == 0, f"{name}: the resumed build ended with {code}: {said(again)[-500:]}"
        )
    if code == 0:
        outcome.problems += [
            f"{name} ({number}): {problem}" for problem in compare(index, expected)
        ]
    return token.exists()


def _publish_something_first(bench, address, index):
    """An index that has a published generation already, of another input."""
    few = bench.folder / "few"
    if not few.exists():
        few.mkdir()
        source = sorted(bench.shards.glob("*.parquet"))[0]
        (few / source.name).write_bytes(source.read_bytes())
    process = start([*light_build(bench, index)[:2], few, index, bench.model, "--address", address])
    if finish(process) != 0:
        raise RuntimeError(said(process)[-1000:])
