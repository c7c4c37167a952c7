"""Faults by the hundred, from a seed that replays: the promises of the design, each with a figure.

    make chaos [SEED=n] [ONLY=name]      all of it, at full size; a table, and one JSON document as the last line
    python tests/chaos/chaos.py --reduced      what `make test` runs

A campaign that finds a breach prints the command that replays it, and the whole ends with 1. Every
process that a campaign started, and only those, is ended by its process id.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests" / "support"),
]  # this tree's package, also in a copy of the project


@dataclass(frozen=True)
class Campaign:
    """One row of the table: a promise, where it is tested, and how often at full and at reduced
    size.
    """

    promise: str
    where: str
    full: int
    reduced: int

    def load(self) -> Callable:
        module, function = self.where.split(":")
        return getattr(import_module(module), function)


CAMPAIGNS = {
    "kills": Campaign("kill-safe, low rework", "campaign_kills:kills", 200, 2),
    "kills-real": Campaign(
        "kill-safe with the real encoder", "campaign_kills:kills_with_the_real_encoder", 10, 0
    ),
    "kills-ray": Campaign("kill-safe at Ray level", "campaign_kills:kills_of_ray", 30, 0),
    "nodes": Campaign("a node may go at any moment", "campaign_nodes:nodes", 20, 0),
    "failed-writes": Campaign("failed writes never lie", "campaign_disk:failed_writes", 120, 9),
    "power-loss": Campaign("survives power loss", "campaign_disk:power_loss", 200, 24),
    "rot": Campaign("detects rot", "campaign_disk:rot", 200, 60),
    "owners": Campaign("one owner", "campaign_races:owners", 100, 3),
    "attempts": Campaign("the first attempt wins", "campaign_races:attempts", 100, 20),
    "unsound": Campaign("published only when sound", "campaign_races:unsound", 60, 12),
    "commits": Campaign("repeat-safe commit", "campaign_races:commits", 102, 12),
    "publishes": Campaign("atomic publish", "campaign_races:publishes", 1000, 10),
    "readers": Campaign("readers during rebuilds", "campaign_nights:readers", 100, 2),
    "reuse": Campaign("what is used again is sound", "campaign_nights:reuse", 30, 0),
    "never-mixed": Campaign("never mixed", "campaign_edits:never_mixed", 22, 0),
    "clean-vectors": Campaign("clean vectors", "campaign_edits:clean_vectors", 30, 10),
    "bounded": Campaign("bounded failure", "campaign_edits:bounded", 4, 1),
    "bad-input": Campaign("bad input", "campaign_input:bad_input", 1000, 100),
    "hostile": Campaign("runs no code", "campaign_input:hostile", 39, 39),
    "filters": Campaign("typed filters", "campaign_input:filters", 10_000, 1000),
    "secrets": Campaign("no secrets, no open heads", "campaign_input:secrets_and_clusters", 3, 0),
    "s3": Campaign("the same on s3://", "campaign_s3:object_store", 10, 1),
    "kills-s3": Campaign("kill-safe on s3://", "campaign_s3:kills_on_s3", 20, 0),
    "stops": Campaign("clean stop", "campaign_edits:stops", 20, 1),
    "busy": Campaign("a busy machine", "campaign_busy:busy", 3000, 0),
    "teeth": Campaign("the campaigns bite", "campaign_teeth:planted_bugs", 19, 5),
    "failpoints": Campaign("a kill at every named point", "campaign_kills:failpoints", 3, 0),
}


def run_one(name: str, seed: int, count: int) -> int:
    """One campaign in this process; its outcome as one JSON line."""
    from faults import become_subreaper, end_descendants, prepare_environment

    become_subreaper()
    prepare_environment()
    folder = Path(
        tempfile.mkdtemp(prefix=f"chaos-{name}-", dir=os.environ.get("CHAOS_DIR", "/tmp"))
    )
    started = time.monotonic()
    try:
        outcome = CAMPAIGNS[name].load()(seed, count, folder)
        problems, counts = outcome.problems, outcome.counts
    finally:
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)
        for place in ("HOME", "RAY_TMPDIR"):
            shutil.rmtree(os.environ[place], ignore_errors=True)
    seconds = round(time.monotonic() - started, 1)
    print(
        json.dumps(
            {"name": name, "seed": seed, "seconds": seconds, "counts": counts, "problems": problems}
        )
    )
    return 1 if problems else 0


def run_apart(name: str, seed: int, count: int) -> dict:
    """One campaign in a process of its own, so that nothing of it outlives it here."""
    command = [sys.executable, __file__, "--only", name, "--seed", str(seed), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        words = (done.stderr.strip() or f"ended with {done.returncode}")[-1500:]
        return {"name": name, "seed": seed, "seconds": 0, "counts": {}, "problems": [words]}


def row(outcome: dict) -> str:
    counts = ", ".join(f"{number:,} {name}" for name, number in outcome["counts"].items())
    verdict = f"{len(outcome['problems'])} breaches" if outcome["problems"] else "held"
    return (
        f"{outcome['name']:<14} {verdict:<11} {outcome['seconds']:>7.1f} s "
        f" {CAMPAIGNS[outcome['name']].promise}: {counts}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CAMPAIGNS)
    parser.add_argument("--count", type=int, help="how often, instead of the full size")
    parser.add_argument("--reduced", action="store_true")
    arguments = parser.parse_args()
    if arguments.only and arguments.count is not None:
        return run_one(arguments.only, arguments.seed, arguments.count)
    outcomes = []
    for name, campaign in CAMPAIGNS.items():
        count = campaign.reduced if arguments.reduced else campaign.full
        if count and arguments.only in (None, name):
            outcomes.append(run_apart(name, arguments.seed, count))
            print(row(outcomes[-1]), flush=True)
            for problem in outcomes[-1]["problems"][:10]:
                print(f"    {problem}")
            if outcomes[-1]["problems"]:
                print(f"    replay: make chaos SEED={arguments.seed} ONLY={name}", flush=True)
    print(json.dumps({"seed": arguments.seed, "campaigns": outcomes}))
    return 1 if any(outcome["problems"] for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
