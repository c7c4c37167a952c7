"""What a night costs whose texts are mostly those of the last one, beside the first build.

    python tests/scale/nights.py DUMP FOLDER [--model m3-mini] [--rows N] [--changed 0 .01 .005]
                                 [--colbert-dim N]

Runs `danbooru-index rebuild`: all new, then a night for each share of `--changed`: so many texts
are changed; 0 stands for other posts, order and ids. DUMP: one JSON record a line, maybe gzipped
(full_size.py's `write_dump` makes a large one). Prints a line each: the seconds beyond start-up and
`prepare`, their share of the first night's, what they went to; memory in use on the machine beyond
what was before, and the largest process; the index on the disk, its last two generations.
FOLDER is made anew.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

COMMAND = Path(sys.executable).parent / "danbooru-index"


def nights(records: list[dict], shares: list[float]) -> Iterator[tuple[str, list[dict], int]]:
    """(what changed, the records, texts that must be encoded) of each night."""
    chance = random.Random(0)
    yield "all new", records, len({record["text"] for record in records})
    for share in shares:
        if share:
            changed = chance.sample(range(len(records)), round(share * len(records)))
            for place in changed:
                records[place] = records[place] | {"text": f"{records[place]['text']} {share}"}
            yield f"{share:.1%} of the texts", records, len(changed)
        else:
            moved = [record | {"post_count": (record["post_count"] or 0) + 1} for record in records]
            chance.shuffle(moved)
            for number, record in enumerate(moved):
                record["id"] = f"n{number}"
            yield "posts, order, ids", moved, 0


class Memory(threading.Thread):
    """The most memory in use on this machine, in bytes, beyond what was when it began."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = psutil.virtual_memory().available
        self.most, self.ended = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            self.most = max(self.most, self.before - psutil.virtual_memory().available)


def on_disk(folder: Path) -> int:
    """Bytes of a folder's files, each counted once however many names it has."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum({entry.st_ino: entry.st_blocks * 512 for entry in found}.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--changed", type=float, nargs="*", default=[0, 0.01, 0.005])
    parser.add_argument("--colbert-dim", type=int)
    arguments = parser.parse_args()
    opened = gzip.open if arguments.dump.suffix == ".gz" else open
    with opened(arguments.dump, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][: arguments.rows]
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    index, dump = arguments.folder / "index", arguments.folder / "dump.jsonl"
    words = [dump, "--index", index, "--model", arguments.model, "--device", "cpu", "--keep", "2"]
    if arguments.colbert_dim:
        words += ["--colbert-dim", arguments.colbert_dim, "--min-fidelity", "0"]
    first = 0.0
    for what, given, expected in nights(records, arguments.changed):
        with dump.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in given)
        memory, began = Memory(), time.monotonic()
        done = subprocess.run(
            [COMMAND, "rebuild", *map(str, words), "--json"], stdout=subprocess.PIPE, check=False
        )
        whole = time.monotonic() - began
        memory.ended.set()
        report = json.loads(done.stdout)
        seconds = report["seconds"]
        beyond = seconds["total"] - seconds["startup"]
        first = first or beyond
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(
            f"{what}: {report['records']:,} records, {report['encoded']:,} encoded (texts changed:"
            f" {expected:,}), exit code {done.returncode}; {whole:.1f} s in all, start-up"
            f" {seconds['startup']:.1f}; beyond it and prepare {beyond:.1f} s, {beyond / first:.1%}"
            f" of the first: {seconds}; stages {report['stages']}; memory {memory.most / 1e9:.1f} GB,"
            f" the largest process {largest:.1f}; tables {report['bytes'] / 1e9:.2f} GB, index"
            f" {on_disk(index) / 1e9:.2f} GB",
            flush=True,
        )
    subprocess.run([COMMAND, "verify", index], check=False)


if __name__ == "__main__":
    main()
