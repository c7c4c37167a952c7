"""All 137,317 real records through `prepare` and `build`; then again with two kill -9 of the driver
on the way.

    python tests/scale/real_input.py CHECKPOINT [OUT]
    python tests/scale/real_input.py CHECKPOINT OUT --records 1386373    the real records over and over, their ids different; no kills

Prints one JSON document: counts, seconds, peak memory (resident, driver and workers apart), and
whether the interrupted build holds the same ids and the same vectors as the undisturbed one.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import lancedb
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from processes import Family, running, wait_for

from danbooru_index.index.catalog import IndexRoot

DUMP = Path(__file__).parents[3] / "shared" / "data" / "danbooru_tags.jsonl.gz"
CLI = [sys.executable, "-m", "danbooru_index.cli"]


class Watch:
    """Peak resident bytes of a process and of the largest of its workers."""

    def __init__(self, pid):
        self._pid, self._family, self.driver, self.worker = pid, Family(pid), 0, 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while psutil.pid_exists(self._pid):
            try:
                self.driver = max(self.driver, psutil.Process(self._pid).memory_info().rss)
                for member in self._family.named("EncodeShard"):
                    self.worker = max(self.worker, member.memory_info().rss)
            except psutil.Error:
                pass
            time.sleep(0.5)


def run(*arguments):
    started = time.monotonic()
    process = subprocess.Popen(
        [*CLI, *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    watch = Watch(process.pid)
    out, _ = process.communicate()
    measured = {"exit": process.returncode, "seconds": round(time.monotonic() - started, 1)}
    measured |= {"driver_peak_mb": watch.driver // 10**6, "encoder_peak_mb": watch.worker // 10**6}
    return json.loads(out), measured


def killed(command, index, at):
    """Start a build and kill -9 its driver once `at` shards are done."""
    with running(command) as process:
        wait_for(
            lambda: len(list(Path(index).glob("generations/*/shards/*.json"))) >= at, timeout=300
        )
        assert process.poll() is None
        process.kill()
        process.wait()


def equal(first, second):
    answers = {}
    for name, columns in {
        "dense": ["id", "vector"],
        "sparse": ["id", "token_ids", "weights"],
        "colbert": ["id", "vectors"],
    }.items():
        tables = [
            lancedb.connect(str(IndexRoot(i).current().path)).open_table(name).to_arrow()
            for i in (first, second)
        ]
        answers[name] = all(
            tables[0][c].combine_chunks().equals(tables[1][c].combine_chunks()) for c in columns
        )
    return answers


def repeated(count, out):
    """A dump of the real records over and over, `count` in all: record i of round k has id
    `i-k`.
    """
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(DUMP, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    path = out / "repeated.jsonl"
    with path.open("w", encoding="utf-8") as dump:
        for i in range(count):
            k, record = i // len(records), records[i % len(records)]
            dump.write(
                json.dumps({**record, "id": f"{record['id']}-{k}"}, ensure_ascii=False) + "\n"
            )
    return path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--records", type=int)
    asked = parser.parse_args()
    out = asked.out or Path(tempfile.mkdtemp(prefix="real-"))
    options = ["--model", asked.model, "--device", "cpu"]
    dump = DUMP if asked.records is None else repeated(asked.records, out)
    prepared, prepare_cost = run("prepare", dump, "--out", out / "shards")
    built, build_cost = run("build", out / "shards", "--index", out / "straight", *options)
    result = {
        "prepare": {
            "records": prepared["records"],
            "rejected": prepared["rejected"],
            **prepare_cost,
        },
        "build": (
            {
                k: built[k]
                for k in ("records", "rejected", "shards", "tokens", "seconds", "tags_per_second")
            }
            | {"cost": build_cost}
        ),
    }
    if asked.records is not None:
        verified, verify_cost = run("verify", out / "straight")
        print(json.dumps(result | {"verify": {"problems": verified["problems"], **verify_cost}}))
        return
    command = [*CLI, "build", str(out / "shards"), "--index", str(out / "killed"), *options]
    for at in (8, 20):
        killed(command, out / "killed", at)
    finished, finish_cost = run("build", out / "shards", "--index", out / "killed", *options)
    verified, verify_cost = run("verify", out / "killed")
    result |= {
        "after_two_kills": {k: finished[k] for k in ("records", "shards")} | {"cost": finish_cost},
        "same_as_undisturbed": equal(out / "straight", out / "killed"),
        "verify": {"problems": verified["problems"], **verify_cost},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
