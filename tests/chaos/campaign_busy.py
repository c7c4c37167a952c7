"""A busy machine: programs that want every core while Ray starts, while shards are encoded, while a
build is stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from faults import (
    Outcome,
    chance_of,
    compare,
    contents,
    end_descendants,
    finish,
    kill,
    light_build,
    make_workbench,
    said,
    start,
)

from danbooru_index.index.catalog import IndexRoot, done_shards

LOOP = "while True: sum(range(10_000))"
ROWS = 2  # a shard


@contextmanager
def heavy_load():
    """Twice as many programs as cores, none of them nice: Ray's workers are, and come last."""
    loops = [start([sys.executable, "-c", LOOP]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for loop in loops:
            kill(loop.pid)
            loop.wait()


def busy(seed: int, count: int, folder: Path) -> Outcome:
    """Two builds at once beside heavy load; then `count` small shards, stopped on the way by
    SIGTERM, and gone on with.
    """
    outcome = Outcome()
    bench = make_workbench(folder)
    straight = bench.index("straight")
    outcome.expect(finish(start(light_build(bench, straight))) == 0, "an undisturbed build failed")
    expected = contents(straight)
    with heavy_load():
        builds = {bench.index(f"beside{n}"): None for n in range(2)}
        began = time.monotonic()
        for index in builds:
            builds[index] = start(light_build(bench, index))
        for index, process in builds.items():
            code = finish(process, 600)
            outcome.expect(
                code == 0, f"{index.name} beside heavy load: {code}: {said(process)[-500:]}"
            )
            outcome.problems += compare(index, expected)
            outcome.add("builds at once beside heavy load")
        outcome.add("seconds of the two", round(time.monotonic() - began, 1))
        end_descendants({loop.pid for loop in _loops()})
    _small_shards(outcome, seed, count, folder / "many")
    return outcome


def _small_shards(outcome: Outcome, seed: int, count: int, folder: Path) -> None:
    folder.mkdir()
    bench = make_workbench(folder, shard_rows=ROWS, copies=max(1, count * ROWS // 468))
    index = bench.index("index")
    shards = len(list(bench.shards.glob("*.parquet")))
    with heavy_load():
        process = start(light_build(bench, index))
        wanted = chance_of(seed, "busy").uniform(0.2, 0.6) * shards
        end = time.monotonic() + 900
        while _done(index) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        began = time.monotonic()
        kill(process.pid, signal.SIGTERM)
        code = finish(process, 60)
        outcome.expect(code == 1, f"a stop beside heavy load: {code}: {said(process)[-300:]}")
        outcome.add("seconds to stop", round(time.monotonic() - began, 1))
        before = _done(index)
        end_descendants({loop.pid for loop in _loops()})
        again = start(light_build(bench, index))
        outcome.expect(finish(again, 1200) == 0, f"does not go on: {said(again)[-500:]}")
    outcome.add("small shards", shards)
    outcome.add("done before the stop", before)
    rows = contents(index)
    for name, found in rows.items():
        ids = [row["id"] for row in found]
        outcome.expect(
            len(ids) == len(set(ids)) == bench.records,
            f"{name}: {len(ids)} rows, {len(set(ids))} ids",
        )


def _loops():
    from faults import descendants

    return [process for process in descendants() if LOOP in process.cmdline()]


def _done(index: Path) -> int:
    """Shards with a completion record, of the only generation."""
    if not (index / "generations").is_dir():
        return 0
    return sum(done_shards(generation) for generation in IndexRoot(index).generations())
