"""Nodes of a cluster go at random moments: killed or told to, and sometimes another joins."""

from __future__ import annotations

import time
from pathlib import Path

from campaign_kills import IN_FLIGHT, SHARD_ROWS, undisturbed
from faults import Outcome, chance_of, compare, finish, light_build, make_workbench, said, start
from nodes import cluster

GPU = {"num_cpus": 1, "num_gpus": 1}


def nodes(seed: int, count: int, folder: Path) -> Outcome:
    """`count` builds on three nodes, one of which goes in each."""
    outcome = Outcome()
    bench = make_workbench(folder, shard_rows=SHARD_ROWS, copies=2)
    expected = undisturbed(bench)
    for number in range(count):
        chance = chance_of(seed, "nodes", number)
        index, log = bench.index(f"n{number}"), folder / f"log{number}"
        with cluster(nodes=[GPU] * 3) as made:
            options = ["--gpus", "--delay", "0.5", "--address", made.address, "--log", log]
            driver = start(light_build(bench, index, *map(str, options)))
            moment = chance.randint(0, 70)
            while driver.poll() is None and _begun(log) < moment:
                time.sleep(0.05)
            if chance.random() < 0.3:
                made.terminate(chance.randrange(3))
                outcome.add("nodes told to go")
            else:
                made.remove(chance.randrange(3))
                outcome.add("nodes killed")
            if chance.random() < 0.3:
                made.add(**GPU)
                outcome.add("nodes that joined")
            code = finish(driver)
        outcome.expect(code == 0, f"build {number} ended with {code}: {said(driver)[-500:]}")
        if code == 0:
            outcome.problems += [f"build {number}: {p}" for p in compare(index, expected)]
            again = _begun(log) - len(list(bench.shards.glob("*.parquet"))) - 1  # the self-check
            outcome.add("shards encoded again", again)
            outcome.expect(again <= 2 * IN_FLIGHT, f"build {number}: {again} shards encoded again")
    return outcome


def _begun(log: Path) -> int:
    """The forward passes begun so far."""
    return len(log.read_text().splitlines()) if log.exists() else 0
