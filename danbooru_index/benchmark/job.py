"""The whole job against the script that users run, and against bare encoding.

Parts of `benchmark`. The simulated ones measure everything around the model, on a Ray of their own
whose GPUs are logical: they say nothing about a model's speed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from danbooru_index.benchmark.run import Bench, in_turn, ratio, summary, write_dump
from danbooru_index.choices import Device, Precision
from danbooru_index.errors import BuildFailedError
from danbooru_index.ingest.prepare import prepare
from danbooru_index.ingest.scan import scan
from danbooru_index.ingest.shards import read_shard
from danbooru_index.machine import cpu_count
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.prepare_config import PrepareConfig


def job(bench: Bench) -> dict[str, Any]:
    """`prepare` and `build` against JSON lines -> FlagEmbedding, 32 at a time -> Chroma (dense)."""
    dump = _input(bench)
    details: dict[str, Any] = {}
    rounds = iter(range(1 << 30))

    def ours() -> None:
        out = bench.scratch / f"ours-{next(rounds)}"
        _command("prepare", str(dump), "--out", str(out / "shards"))
        report = _build_command(bench, out / "shards", out / "index")
        details["ours"] = {"seconds": report["seconds"], "records": report["records"]}

    def script() -> None:
        out = bench.scratch / f"chroma-{next(rounds)}"
        words = [str(dump), bench.checkpoint.path, str(out), bench.device.kind]
        command = [sys.executable, "-m", "danbooru_index.benchmark.baselines", *words]
        details["script"] = _json(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False), "the script"
        )

    contestants: dict[str, Callable[[], Any]] = {"ours": ours}
    if bench.config.against:
        contestants["script"] = script
    seconds = in_turn(contestants, bench.config.repeats)
    measured: dict[str, Any] = {
        "end_to_end": {
            name: summary(times, len(bench.records), "records_per_second")
            for name, times in seconds.items()
        }
    }
    if "script" in seconds:
        measured["ratio"] = ratio(seconds["script"], seconds["ours"])
        script_rate = details["script"]["records"] / details["script"]["seconds"]
        measured["script_without_startup"] = {"records_per_second": round(script_rate, 1)}
    return measured | {"last_round": details}


def _input(bench: Bench) -> Path:
    """The records of the benchmark as a dump."""
    return write_dump(
        bench.scratch / "tags.jsonl", ((record.id, record.text) for record in bench.records)
    )


def _build_command(bench: Bench, shards: Path, index: Path) -> dict[str, Any]:
    """One `build` by its command; its report."""
    options = [
        "--model",
        bench.checkpoint.path,
        "--device",
        bench.device.kind,
        "--precision",
        bench.device.precision,
    ]
    return _command("build", str(shards), "--index", str(index), *options)


def _command(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "danbooru_index.cli", *words, "--json"]
    return _json(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False), words[0])


def _json(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    if done.returncode:
        raise BuildFailedError(
            f"the benchmark's {name} ended with {done.returncode}; its last words are above"
        )
    document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def overhead(bench: Bench) -> dict[str, Any]:
    """(wall - start-up) of the job over the encoding time of the same batches, in turn."""
    dump = _input(bench)
    shards = bench.scratch / "shards"
    prepare(PrepareConfig((str(dump),), str(shards)))
    tokenizer = Tokenizer(bench.checkpoint.path, 512)
    batches = [
        tokenizer(read_shard(shard)[0]["text"].to_pylist()) for shard in scan(str(shards)).shards
    ]
    precision = Precision(bench.device.precision)
    one = Encoder(
        bench.checkpoint.path,
        Device(bench.device.kind),
        precision,
        threads=cpu_count(),
        half_output=True,
    )
    one.encode(batches[0])
    rounds: dict[str, list[float]] = {"bare": [], "job": []}
    last: dict[str, Any] = {}
    for number in range(bench.config.repeats):
        started = time.perf_counter()
        for batch in batches:
            one.encode(batch)
        rounds["bare"].append(time.perf_counter() - started)
        index = bench.scratch / f"index-{number}"
        last = _build_command(bench, shards, index)
        rounds["job"].append(last["seconds"]["total"] - last["seconds"]["startup"])
    return {
        "seconds": {
            name: summary(times, len(bench.records), "records_per_second")
            for name, times in rounds.items()
        },
        "job_over_bare": ratio(rounds["job"], rounds["bare"]),
        "last_build": {
            "seconds": last["seconds"],
            "stages": last["stages"],
            "busy": last["devices"][0]["busy_share"],
        },
    }
