"""How long does a build of 170,000 shards take to go on, where 99% of them are done?

    python tests/scale/resume.py FOLDER [--shards 170000] [--done 0.99]

A script writes the shards (4 records each, a file each), and the completion records of those that
are done; all of them name the same three data files. Then the real build reads its input and the
records, plans, and is at the point where encoders would be given the first shard. The parts, in
seconds, and the driver's memory.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import pyarrow as pa
import pyarrow.parquet as pq
from checkpoints import make_checkpoint
from faults import LIGHT_SHAPE
from light import light_config

from danbooru_index.index.completion import CompletionRecord, TablePart, record_path
from danbooru_index.index.lifecycle import open_generation
from danbooru_index.index.schema import TABLES, table_path
from danbooru_index.index.shard_stats import ShardStats
from danbooru_index.ingest.shards import RECORD_SCHEMA
from danbooru_index.pipeline import build as built
from danbooru_index.pipeline import resume

ROWS = 4
DATA = 4096  # bytes of the one data file of each table


class EnoughError(Exception):
    """Raised where the first shard would be encoded."""


def write_shards(folder, count):
    """So many Parquet files of a few records."""
    folder.mkdir()
    for number in range(count):
        ids = [f"{number}-{row}" for row in range(ROWS)]
        columns = {name: ["x"] * ROWS for name in ("tag", "category", "explanation", "source")}
        columns |= {"id": ids, "text": [f"text {one}" for one in ids], "post_count": [1] * ROWS}
        columns |= {"aliases": [[]] * ROWS, "nsfw": [False] * ROWS, "deprecated": [False] * ROWS}
        pq.write_table(pa.table(columns, schema=RECORD_SCHEMA), folder / f"{number:06}.parquet")


def write_records(generation, shards, fingerprint):
    """The completion records of shards, as an encoder writes them."""
    for name in TABLES:
        data = Path(str(table_path(generation, name) / "data"))
        data.mkdir(parents=True, exist_ok=True)
        (data / "all.lance").write_bytes(b"x" * DATA)
    file = {"path": "all.lance", "fields": [*range(12)], "column_indices": [*range(12)],
            "file_major_version": 2, "file_minor_version": 1, "file_size_bytes": DATA, "base_id": None}  # fmt: skip
    for shard in shards:
        part = TablePart(
            [{"id": 0, "files": [file], "deletion_file": None, "physical_rows": ROWS}], ROWS, DATA,
            "0123456789abcdef" * 4, {"all.lance": "0123456789abcdef"},
        )  # fmt: skip
        record = CompletionRecord(
            shard, fingerprint, "a" * 32, ROWS, ROWS, dict.fromkeys(TABLES, part), [],
            ShardStats(1.0, 2.0, 0.1, 0.1, 0.1, 10, 0, 10, 10, histogram=(0, 4, 0, 0)),
        )  # fmt: skip
        path = Path(str(record_path(generation, shard)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.to_bytes())


def go_on(folder, share, seconds):
    """The real build, up to its first task; the records are written once the generation is known."""

    def find_work(plan, root, guard):
        if not (folder / "written").exists():
            began = time.perf_counter()
            opened = open_generation(root, plan.wanted, None, strict=False).generation
            done = [shard.id for shard in plan.scan.shards][: int(len(plan.scan.shards) * share)]
            write_records(opened.path, done, plan.wanted.fingerprint_digest)
            (folder / "written").touch()
            seconds["writing the records"] = time.perf_counter() - began
            raise EnoughError
        began = time.perf_counter()
        work = resume.find_work(plan, root, guard)
        seconds["reading the records"] = time.perf_counter() - began
        seconds["left"] = len(work.pending)
        return work

    def encode(plan, work, start_up):
        seconds["command to first task"] = time.monotonic() - plan.started
        raise EnoughError

    built.find_work, built.encode = find_work, encode
    config = light_config(folder / "shards", folder / "index", folder / "model")
    began = time.perf_counter()
    try:
        built.build(config)
    except EnoughError:
        seconds["in all"] = time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description="Going on with a build of many shards.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=170_000)
    parser.add_argument("--done", type=float, default=0.99)
    given = parser.parse_args()
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {}
    if not (folder / "model").exists():
        write_shards(folder / "shards", given.shards)
        make_checkpoint(folder / "model", LIGHT_SHAPE)
        go_on(folder, given.done, seconds)
    go_on(folder, given.done, seconds)
    seconds["memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({name: round(value, 2) for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
