"""One encoder of eight at a tenth of the others' speed: how long is the run beside what the sum of
speeds allows?

    python tests/scale/stragglers.py [--delay 1] [--copies 3]

Real Ray on this machine, eight logical GPUs, a forward pass that sleeps, one at a time. Both runs in
turn: late shards waited for, and offered to the others. Two times: from the first shard begun to
the last one done, and from when all encoders are at work, since they do not start at once.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from faults import light_build, make_workbench
from nodes import cluster
from processes import running

from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import read_records
from danbooru_index.index.status import verify

ENCODERS, SLOWER = 8, 10


def encode(bench, name, delay, *options):
    """When each shard was begun and done, by the process that did it and its completion record."""
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
        by_worker.setdefault(one.worker.id, []).append((one.started, one.ended))
    return by_worker


def beside_ideal(by_worker, speed, since):
    """Seconds from a moment to the last shard done, and the ratio to what `speed`, in shards a
    second, needs for what was left then. A shard in hand counts by its part that was to come.
    """
    spans = [span for spans in by_worker.values() for span in spans]
    left = sum(min(1.0, max(0.0, (end - since) / (end - start))) for start, end in spans)
    seconds = max(end for _, end in spans) - since
    return {
        "seconds": round(seconds, 1),
        "ideal": round(left / speed, 1),
        "ratio": round(seconds * speed / left, 3),
    }


def main():
    parser = argparse.ArgumentParser(description="One slow encoder of eight.")
    parser.add_argument("--delay", type=float, default=1.0)
    parser.add_argument("--copies", type=int, default=3)
    given = parser.parse_args()
    answer = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = make_workbench(Path(folder), copies=given.copies)
        for name, options in (("waited for", ["--no-backups"]), ("offered to others", [])):
            by_worker = encode(bench, name.replace(" ", "-"), given.delay, *options)
            times = [end - start for spans in by_worker.values() for start, end in spans]
            begun = [min(start for start, _ in spans) for spans in by_worker.values()]
            speed = (ENCODERS - 1 + 1 / SLOWER) / given.delay  # shards a second
            answer[name] = {
                "from the first shard": beside_ideal(by_worker, speed, min(begun)),
                "all at work": beside_ideal(by_worker, speed, max(begun)),
                "begun": [round(one - min(begun), 1) for one in sorted(begun)],
                "a shard in hand": round(median(times), 2),
                "shards": sorted(len(spans) for spans in by_worker.values()),
            }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
