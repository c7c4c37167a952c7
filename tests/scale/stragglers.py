"""One encoder of eight at a tenth of the others' speed: how long is the run beside what the sum of
speeds allows?

    python tests/scale/stragglers.py [--delay 1] [--copies 3]

Real Ray on this machine, eight logical GPUs, a forward pass that sleeps. Both runs in turn: late
shards waited for, and begun again elsewhere. From the first shard begun to the last one done.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from faults import light_build, make_workbench
from nodes import cluster
from processes import running

from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import read_records
from danbooru_index.index.status import verify

ENCODERS, SLOWER = 8, 10


def encoding_seconds(bench, name, delay, *options):
    """From the first shard begun to the last one done, by the completion records; and the shards
    each process did.
    """
    index = bench.index(name)
    with cluster(nodes=[{"num_cpus": 4, "num_gpus": ENCODERS}]) as nodes:
        words = ["--gpus", "--delay", str(delay), "--address", nodes.address, *options]
        words += ["--slow", str(bench.folder / f"{name}.slow")]
        with running([str(w) for w in light_build(bench, index, *words)]) as process:
            _, err = process.communicate()
            if process.returncode:
                raise SystemExit(err)
    if problems := verify(str(index)).problems:
        raise SystemExit(f"the index is not whole: {problems}")
    manifest = IndexRoot(index).current().manifest
    records = read_records(
        IndexRoot(index).current().path,
        manifest.shards,
        manifest.fingerprint_digest,
        sealed=True,
        compacted=manifest.compacted,
    )
    stats = [record.stats for record in records.values()]
    by_worker = {}
    for one in stats:
        by_worker.setdefault(one.worker.id, []).append(one.ended - one.started)
    return max(s.ended for s in stats) - min(s.started for s in stats), by_worker


def main():
    parser = argparse.ArgumentParser(description="One slow encoder of eight.")
    parser.add_argument("--delay", type=float, default=1.0)
    parser.add_argument("--copies", type=int, default=3)
    given = parser.parse_args()
    answer = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = make_workbench(Path(folder), copies=given.copies)
        shards = len(list(bench.shards.glob("*.parquet")))
        for name, options in (("waited for", ["--no-backups"]), ("begun again", [])):
            seconds, by_worker = encoding_seconds(
                bench, name.replace(" ", "-"), given.delay, *options
            )
            fast = sorted(t for times in by_worker.values() for t in times)[shards // 2]
            calls = 3  # shards that an encoder has in hand
            speed = calls / fast * (ENCODERS - 1 + 1 / SLOWER)  # shards a second
            answer[name] = {
                "seconds": round(seconds, 1),
                "ideal": round(shards / speed, 1),
                "ratio": round(seconds * speed / shards, 3),
                "shards": {worker: len(times) for worker, times in by_worker.items()},
            }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
