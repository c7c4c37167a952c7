"""The headline job at its size, by the README's own words: 1,386,373 records, m3-mini, a relative
`--index`.

    python tests/scale/full_size.py [FOLDER] [--records N] [--dump DUMP]

The real tags where shared/ has them (else the sample), each round of them under other names:
`school_uniform` becomes `school_uniform_(hatsune_miku)`, as qualified tags are. Commands run in
FOLDER (default: a temporary one), one after the other, as a user types them. Prints one JSON
document: seconds by command, speed, sizes; ends with 1 where anything is not as it must be.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "danbooru_tags.jsonl.gz"
SAMPLE = ROOT / "danbooru_index" / "sample_tags.jsonl"
RECORDS = 1_386_373
QUERY = "穿水手服的女孩"


def write_dump(source, records, path):
    """So many records, every id and tag once: the source's own, then with a qualifier that is
    another of its tags.
    """
    content = source.read_bytes()
    content = gzip.decompress(content) if source.suffix == ".gz" else content
    real = [json.loads(line) for line in content.decode().splitlines()]
    chance, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as out:
        for number in count():
            for record in real:
                if written == records:
                    return
                varied = dict(record)
                if number:
                    tag = f"{record['tag']}_({chance.choice(real)['tag'].partition('_(')[0]}_{number})"
                    varied["text"] = record["text"].replace(record["tag"], tag, 1)
                    varied |= {"tag": tag, "id": f"{record['id']}-{number}", "aliases": []}
                out.write(json.dumps(varied, ensure_ascii=False) + "\n")
                written += 1


def command(folder, *words):
    """One command of the README; its JSON document and its seconds."""
    started = time.monotonic()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["danbooru-index", *map(str, words), "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"danbooru-index {words[0]} ended with {done.returncode}")
    return json.loads(done.stdout), round(time.monotonic() - started, 1)


def measure(folder, source, records):
    write_dump(source, records, folder / "tags.jsonl")
    prepared, prepare_s = command(folder, "prepare", "tags.jsonl", "--out", "data/shards")
    words = ["data/shards", "--index", "data/my-index", "--model", "m3-mini", "--device", "cpu"]
    built, build_s = command(folder, "build", *words)
    found, search_s = command(
        folder, "search", "data/my-index", QUERY, "--mode", "dense", "--limit", 5
    )
    verified, verify_s = command(folder, "verify", "data/my-index")
    again, _ = command(folder, "build", *words)
    index = (
        folder
        / "data"
        / "my-index"
        / "generations"
        / built["generation"]
        / "dense.lance"
        / "_indices"
    )
    right = {
        "records": built["records"] == prepared["records"] == records,
        "whole": verified["problems"] == [],
        "found": len(found["hits"]) == 5,
        "published": again["state"].startswith("already published"),
        "indexed": index.is_dir() or records < 1 << 18,
    }
    return right, {
        "records": records,
        "seconds": {"prepare": prepare_s, "build": build_s, "search": search_s, "verify": verify_s},
        "build": built["seconds"],
        "tags_per_second": built["tags_per_second"],
        "tokens": built["tokens"],
        "index_bytes": sum(
            p.stat().st_size for p in (folder / "data" / "my-index").rglob("*") if p.is_file()
        ),
        "wrong": [name for name, value in right.items() if not value],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--dump", type=Path, default=REAL if REAL.exists() else SAMPLE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="full-size-") as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        right, measured = measure(folder, arguments.dump, arguments.records)
    print(json.dumps(measured, ensure_ascii=False))
    return 0 if all(right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
