"""What a night costs whose texts are mostly those of the last one, beside the first build.

    python tests/scale/nights.py DUMP.jsonl.gz FOLDER --model m3-mini [--rows N] [--colbert-dim N]

Four nights of one index: all new; posts, order and ids changed; 1% of the texts changed; .5%. Prints
a line each, with the seconds beyond start-up and `prepare`, their share of the first night's, and
what they went to. FOLDER is made anew.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from danbooru_index.choices import Device
from danbooru_index.config import BuildConfig
from danbooru_index.index.status import verify
from danbooru_index.pipeline.rebuild import RebuildConfig, rebuild


def nights(records: list[dict]) -> Iterator[tuple[str, list[dict], int]]:
    """(what changed, the records, texts that must be encoded) of each night."""
    chance = random.Random(0)
    yield "all new", records, len({record["text"] for record in records})
    moved = [record | {"post_count": (record.get("post_count") or 0) + 1} for record in records]
    chance.shuffle(moved)
    for number, record in enumerate(moved):
        record["id"] = f"n{number}"
    yield "posts, order, ids", moved, 0
    for share in (0.01, 0.005):
        changed = chance.sample(range(len(records)), round(share * len(records)))
        for place in changed:
            records[place] = records[place] | {"text": f"{records[place]['text']} {share}"}
        yield f"{share:.1%} of the texts", records, len(changed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--colbert-dim", type=int)
    arguments = parser.parse_args()
    with gzip.open(arguments.dump, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][: arguments.rows]
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    index, dump = arguments.folder / "index", arguments.folder / "dump.jsonl"
    build = BuildConfig(
        "", str(index), model=arguments.model, device=Device.CPU,
        colbert_dim=arguments.colbert_dim, min_fidelity=0.0,
    )  # fmt: skip
    first = 0.0
    for what, given, expected in nights(records):
        with dump.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in given)
        began = time.monotonic()
        report, code = rebuild(RebuildConfig((str(dump),), replace(build), keep=2))
        whole, seconds = time.monotonic() - began, report.seconds
        beyond = seconds.total - seconds.startup
        first = first or beyond
        peak = max(resource.getrusage(who).ru_maxrss for who in (0, -1)) / 1e6
        print(
            f"{what}: {report.records:,} records, {report.encoded:,} encoded (texts changed:"
            f" {expected:,}), exit code {code}; {whole:.1f} s in all, start-up"
            f" {seconds.startup:.1f}; beyond it {beyond:.1f} s, {beyond / first:.1%} of the first:"
            f" encoding {seconds.encode:.1f}, commit {seconds.commit:.1f}, search files"
            f" {seconds.index:.1f}, checks and guards {seconds.verify:.1f}; peak {peak:.1f} GB,"
            f" tables {report.bytes / 1e9:.2f} GB",
            flush=True,
        )
    found = verify(str(index))
    print(found.to_text(), flush=True)


if __name__ == "__main__":
    main()
