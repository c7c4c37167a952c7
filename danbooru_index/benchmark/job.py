"""The whole job: against the script that users run, against bare encoding, and with a simulated forward pass.

Parts of `benchmark`. The simulated ones measure everything around the model, on a Ray of their own whose GPUs are
logical: they say nothing about a model's speed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from danbooru_index.benchmark.run import Bench, in_turn, ratio, summary
from danbooru_index.benchmark.simulated import Simulation, make_shape
from danbooru_index.cluster import resources as cluster
from danbooru_index.config import BuildConfig, Device, Precision, PrepareConfig
from danbooru_index.errors import BuildFailedError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.fragments import commit, read_records
from danbooru_index.ingest.prepare import prepare
from danbooru_index.ingest.shards import list_shards, read_shard
from danbooru_index.model.device import cpu_count
from danbooru_index.model.encoder import Encoder, Tokenizer
from danbooru_index.pipeline import build as pipeline
from danbooru_index.pipeline.build import build
from danbooru_index.pipeline.report import BuildReport

OBJECT_STORE_BYTES = 200 << 20
GPUS = (1, 2, 4, 8)
SCALING_SHARDS = {2.0: 10, 0.2: 100}
SCALING_ROWS = 32
DEVICE_SHARDS = {128: 100, 1024: 40}
DEVICE_ROWS = 4096
OVERLAP_SHARDS = 50
OVERLAPS = {  # the most calls at once in an encoder, and tasks in flight to a tokeniser
    "as built": (cluster.CALLS_AT_ONCE[1], 16),
    "one shard written at a time": (3, 16),
    "no writing behind the next forward": (1, 16),
    "one task in flight to a tokeniser": (cluster.CALLS_AT_ONCE[1], 1),
    "neither": (1, 1),
}
SHARD_ROWS = 4


def job(bench: Bench) -> dict[str, Any]:
    """`prepare` and `build`, all three outputs, against JSON lines -> FlagEmbedding, 32 at a time -> Chroma, dense only."""
    dump = _input(bench)
    details: dict[str, Any] = {}
    rounds = iter(range(1 << 30))

    def ours() -> None:
        out = bench.scratch / f"ours-{next(rounds)}"
        _command("prepare", str(dump), "--out", str(out / "shards"))
        report = _build(bench, out / "shards", out / "index")
        details["ours"] = {"seconds": report["seconds"], "records": report["records"]}

    def script() -> None:
        out = bench.scratch / f"chroma-{next(rounds)}"
        words = [str(dump), bench.checkpoint.path, str(out), bench.device.kind]
        command = [sys.executable, "-m", "danbooru_index.benchmark.baselines", *words]
        details["script"] = _json(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False), "the script")

    contestants: dict[str, Callable[[], Any]] = {"ours": ours}
    if bench.config.against:
        contestants["script"] = script
    seconds = in_turn(contestants, bench.config.repeats)
    measured: dict[str, Any] = {
        "end_to_end": {
            name: summary(times, len(bench.records), "records_per_second") for name, times in seconds.items()
        }
    }
    if "script" in seconds:
        measured["ratio"] = ratio(seconds["script"], seconds["ours"])
        script_rate = details["script"]["records"] / details["script"]["seconds"]
        measured["script_without_startup"] = {"records_per_second": round(script_rate, 1)}
    return measured | {"last_round": details}


def _write_dump(path: Path, records: Iterable[tuple[str, str]]) -> Path:
    """JSON lines of (id, text)."""
    with path.open("w", encoding="utf-8") as lines:
        for record_id, text in records:
            lines.write(json.dumps({"id": record_id, "text": text}, ensure_ascii=False) + "\n")
    return path


def _input(bench: Bench) -> Path:
    """The records of the benchmark as a dump."""
    return _write_dump(bench.scratch / "tags.jsonl", ((record.id, record.text) for record in bench.records))


def _build(bench: Bench, shards: Path, index: Path) -> dict[str, Any]:
    """One `build` by its command; its report."""
    options = ["--model", bench.checkpoint.path, "--device", bench.device.kind, "--precision", bench.device.precision]
    return _command("build", str(shards), "--index", str(index), *options)


def _command(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "danbooru_index.cli", *words, "--json"]
    return _json(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False), words[0])


def _json(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    if done.returncode:
        raise BuildFailedError(f"the benchmark's {name} ended with {done.returncode}; its last words are above")
    document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def overhead(bench: Bench) -> dict[str, Any]:
    """(wall - start-up) of the job over the bare encoding time of the same token batches, in turn."""
    dump = _input(bench)
    shards = bench.scratch / "shards"
    prepare(PrepareConfig((str(dump),), str(shards)))
    tokenizer = Tokenizer(bench.checkpoint.path, 512)
    batches = [tokenizer(read_shard(shard)[0]["text"].to_pylist()) for shard in list_shards(str(shards))]
    precision = Precision(bench.device.precision)
    one = Encoder(bench.checkpoint.path, Device(bench.device.kind), precision, threads=cpu_count(), half_output=True)
    one.encode(batches[0])
    rounds: dict[str, list[float]] = {"bare": [], "job": []}
    last: dict[str, Any] = {}
    for number in range(bench.config.repeats):
        started = time.perf_counter()
        for batch in batches:
            one.encode(batch)
        rounds["bare"].append(time.perf_counter() - started)
        index = bench.scratch / f"index-{number}"
        last = _build(bench, shards, index)
        rounds["job"].append(last["seconds"]["total"] - last["seconds"]["startup"])
    return {
        "seconds": {name: summary(times, len(bench.records), "records_per_second") for name, times in rounds.items()},
        "job_over_bare": ratio(rounds["job"], rounds["bare"]),
        "last_build": {"seconds": last["seconds"], "stages": last["stages"], "busy": last["devices"][0]["busy_share"]},
    }


@contextlib.contextmanager
def _cluster(gpus: int) -> Iterator[None]:
    """A Ray of this process with so many logical GPUs, and the CPUs that this machine has."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray checks logical GPUs against it
    import ray

    ray.init(
        address="local",
        num_cpus=cpu_count(),
        num_gpus=gpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


def _simulate(bench: Bench, name: str, shards: Path, *, width: int, forward_s: float, gpus: int = 1) -> BuildReport:
    """One build of these shards with a forward pass of `forward_s`, vectors `width` wide, on so many devices."""
    model = bench.scratch / f"model-{width}"
    if not model.is_dir():
        make_shape(Path(bench.checkpoint.path), model, width)
    index, together = bench.scratch / f"index-{name}", bench.scratch / f"together-{name}"
    together.mkdir()
    encoder = Simulation(forward_s, together=str(together), devices=gpus)
    return build(BuildConfig(str(shards), str(index), model=str(model), num_gpus=gpus, encoder=encoder))


def _shards(bench: Bench, rows: int, count: int) -> Path:
    """`count` shards of `rows` real records each, ids made different where the input is used more than once."""
    out = bench.scratch / f"shards-{rows}-{count}"
    texts = islice(cycle(bench.texts), rows * count)
    dump = _write_dump(bench.scratch / f"tags-{rows}-{count}.jsonl", ((str(n), text) for n, text in enumerate(texts)))
    prepare(PrepareConfig((str(dump),), str(out), shard_rows=rows))
    return out


def device(bench: Bench) -> dict[str, Any]:
    """How busy one device is kept, 200 ms a shard of 4,096 rows, outputs at 128 values and in full width."""
    measured: dict[str, Any] = {}
    with _cluster(1):
        for width, count in DEVICE_SHARDS.items():
            shards = _shards(bench, DEVICE_ROWS, count)
            report = _simulate(bench, f"device-{width}", shards, width=width, forward_s=0.2)
            use = report.devices[0]
            measured[f"{width} values"] = {
                "busy_share": use.busy_share,
                "shards_per_second": round(count / report.seconds.encode, 2),
                "mb_per_second": round(report.bytes / report.seconds.encode / 1e6, 1),
                "write_seconds_a_shard": round(report.stages["write"] / count, 3),
                "tokenise_seconds_a_shard": round(report.stages["read"] / count, 3),
            }
    return measured


def overlap(bench: Bench) -> dict[str, Any]:
    """What each habit of the pipeline is worth to one busy device: 200 ms a shard of 4,096 rows at 128 values."""
    shards = _shards(bench, DEVICE_ROWS, OVERLAP_SHARDS)
    measured: dict[str, Any] = {}
    with _cluster(1):
        for name, (calls, flight) in OVERLAPS.items():
            kept = cluster.CALLS_AT_ONCE, pipeline.TASKS_IN_FLIGHT
            cluster.CALLS_AT_ONCE, pipeline.TASKS_IN_FLIGHT = (min(kept[0][0], calls), calls), flight
            try:
                report = _simulate(bench, name, shards, width=128, forward_s=0.2)
            finally:
                cluster.CALLS_AT_ONCE, pipeline.TASKS_IN_FLIGHT = kept
            measured[name] = {
                "busy_share": report.devices[0].busy_share,
                "shards_per_second": round(OVERLAP_SHARDS / report.seconds.encode, 2),
            }
    return measured


def scaling(bench: Bench) -> dict[str, Any]:
    """1 to 8 logical GPUs, small shards, forwards of 2 s and of 200 ms: shards a second against as many times one."""
    measured: dict[str, Any] = {}
    with _cluster(max(GPUS)):
        for forward_s, per_gpu in SCALING_SHARDS.items():
            alone = 0.0
            for gpus in GPUS:
                shards = _shards(bench, SCALING_ROWS, per_gpu * gpus)
                name = f"{forward_s}-{gpus}"
                report = _simulate(bench, name, shards, width=64, forward_s=forward_s, gpus=gpus)
                rate = per_gpu * gpus / report.seconds.encode
                alone = alone or rate
                measured[f"{forward_s} s, {gpus} GPUs"] = {
                    "shards_per_second": round(rate, 3),
                    "efficiency": round(rate / gpus / alone, 4),
                    "of_the_ideal": round(rate / gpus * forward_s, 4),
                }
    return measured


def shards(bench: Bench) -> dict[str, Any]:
    """Many small shards through the whole job: the driver's cost of each, memory over time, the commit as the list grows.

    `--rows` is the number of shards.
    """
    count = bench.rows
    folder = _shards(bench, SHARD_ROWS, count)
    with _Watch() as watch, _cluster(1):
        report = _simulate(bench, "shards", folder, width=64, forward_s=0.0)
    generation = IndexRoot(bench.scratch / "index-shards").current()
    listed = [shard.id for shard in list_shards(str(folder))]
    began = time.perf_counter()
    known = read_records(
        generation.path,
        listed,
        generation.manifest.fingerprint_digest,
        sealed=True,
        compacted=generation.manifest.compacted_parts,
    )
    reading = time.perf_counter() - began
    commits = {}
    for part in (count // 8, count // 4, count // 2, count):
        began = time.perf_counter()
        commit(generation.path, generation.manifest.specs, [known[shard] for shard in listed[:part]])
        commits[str(part)] = round((time.perf_counter() - began) / part * 1e3, 4)
    return {
        "shards": count,
        "driver_cpu_ms_a_shard": round(watch.cpu_s / count * 1e3, 3),
        "wall_ms_a_shard": round(report.seconds.encode / count * 1e3, 3),
        "start_to_published_s": round(report.seconds.total, 1),
        "reading_records_ms_a_shard": round(reading / count * 1e3, 3),
        "commit_ms_a_shard_by_shards": commits,
        "seconds": {name: round(value, 2) for name, value in asdict(report.seconds).items()},
        "memory_mb_by_tenths": watch.tenths(),
    }


class _Watch:
    """Memory of the driver and of its largest actor (resident) and of the object store, once a second, and the driver's
    processor time, while the encoder is there."""

    def __init__(self) -> None:
        import psutil

        self._own = psutil.Process()
        self._samples: list[dict[str, float]] = []
        self._cpu: list[float] = []

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time of the driver, all its threads."""
        return self._cpu[-1] - self._cpu[0] if self._cpu else 0.0

    def __enter__(self) -> _Watch:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        import ray

        while not self._ended.wait(1.0):
            with contextlib.suppress(Exception):  # a process that ends meanwhile, a Ray that does
                workers = [p for p in self._own.children(recursive=True) if "EncodeShard" in "".join(p.cmdline())]
                if not workers and not self._cpu:
                    continue
                self._cpu.append(time.process_time())
                if not workers:  # once more where they are gone: a short run is over between two looks
                    return
                total, free = ray.cluster_resources(), ray.available_resources()
                name = "object_store_memory"
                self._samples.append(
                    {
                        "driver": self._own.memory_info().rss / 1e6,
                        "encoder": max(p.memory_info().rss / 1e6 for p in workers),
                        "object_store": (total.get(name, 0) - free.get(name, 0)) / 1e6,
                    }
                )
        self._cpu.append(time.process_time())

    def tenths(self) -> dict[str, list[int]]:
        """The largest value of each tenth of the time in which the encoder was there."""
        samples = self._samples
        size = max(1, len(samples) // 10)
        return {
            name: [round(max(s[name] for s in samples[at : at + size])) for at in range(0, len(samples), size)]
            for name in (samples[0] if samples else {})
        }
