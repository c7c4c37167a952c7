"""All but the model: busy devices, overlap, scaling, many shards, by a simulated forward pass.

Parts of `benchmark`, on a Ray of their own whose GPUs are logical: they say nothing about a model's
speed. In one module, since four measurements share one simulated build and one watch over it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from danbooru_index.benchmark.run import Bench, write_dump
from danbooru_index.benchmark.simulated import Simulation, make_shape
from danbooru_index.config import BuildConfig, Tuning
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.commit import commit
from danbooru_index.index.completion import read_records
from danbooru_index.ingest.prepare import prepare
from danbooru_index.ingest.scan import scan
from danbooru_index.machine import cpu_count
from danbooru_index.pipeline.build import build
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.prepare_config import PrepareConfig

BENCHMARK_STORE_BYTES = 200 << 20
DEFAULT_TUNING = Tuning()
GPUS = (1, 2, 4, 8)
SCALING_SHARDS = {2.0: 10, 0.2: 100}
SCALING_ROWS = 32
DEVICE_SHARDS = {128: 100, 1024: 40}
DEVICE_ROWS = 4096
OVERLAP_SHARDS = 50
OVERLAPS = {
    "as built": Tuning(),
    "one shard written at a time": Tuning(calls_at_once=(3, 3)),
    "no writing behind the next forward": Tuning(calls_at_once=(1, 1)),
    "one task in flight to a tokeniser": Tuning(tasks_in_flight=1),
    "neither": Tuning(calls_at_once=(1, 1), tasks_in_flight=1),
}
SHARD_ROWS = 4
MANY_ENCODERS = 16


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
        object_store_memory=BENCHMARK_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


def _simulate(
    bench: Bench,
    name: str,
    shards: Path,
    *,
    width: int,
    forward_s: float,
    gpus: int = 1,
    tuning: Tuning = DEFAULT_TUNING,
) -> BuildReport:
    """One build with a forward pass of `forward_s`, vectors `width` wide, on logical devices."""
    model = bench.scratch / f"model-{width}"
    if not model.is_dir():
        make_shape(Path(bench.checkpoint.path), model, width)
    index, together = bench.scratch / f"index-{name}", bench.scratch / f"together-{name}"
    together.mkdir()
    encoder = Simulation(forward_s, together=str(together), devices=gpus)
    return build(
        BuildConfig(
            str(shards), str(index), model=str(model), num_gpus=gpus, encoder=encoder, tuning=tuning
        )
    )


def _shards(bench: Bench, rows: int, count: int) -> Path:
    """`count` shards of `rows` real records each, with new ids where the input is repeated."""
    out = bench.scratch / f"shards-{rows}-{count}"
    texts = islice(cycle(bench.texts), rows * count)
    dump = write_dump(
        bench.scratch / f"tags-{rows}-{count}.jsonl",
        ((str(n), text) for n, text in enumerate(texts)),
    )
    prepare(PrepareConfig((str(dump),), str(out), shard_rows=rows))
    return out


def device(bench: Bench) -> dict[str, Any]:
    """How busy one device is kept: 200 ms a shard of 4,096 rows, at 128 values and full width."""
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
    """What each habit of the pipeline is worth to one busy device (200 ms a shard)."""
    shards = _shards(bench, DEVICE_ROWS, OVERLAP_SHARDS)
    measured: dict[str, Any] = {}
    with _cluster(1):
        for name, tuning in OVERLAPS.items():
            report = _simulate(bench, name, shards, width=128, forward_s=0.2, tuning=tuning)
            measured[name] = {
                "busy_share": report.devices[0].busy_share,
                "shards_per_second": round(OVERLAP_SHARDS / report.seconds.encode, 2),
            }
    return measured


def scaling(bench: Bench) -> dict[str, Any]:
    """1 to 8 logical GPUs, forwards of 2 s and of 200 ms: shards/s against so many times one."""
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
    """Many small shards through the whole job: the driver's cost of each, memory over time, the
    commit as the list grows; then the same with 16 encoders.

    `--rows` is the number of shards.
    """
    count = bench.rows
    folder = _shards(bench, SHARD_ROWS, count)
    with _MemoryWatch() as watch, _cluster(1):
        report = _simulate(bench, "shards", folder, width=64, forward_s=0.0)
    encoders = max(1, min(MANY_ENCODERS, count // 8))
    with _MemoryWatch() as crowd, _cluster(encoders):
        crowded = _simulate(bench, "shards-many", folder, width=64, forward_s=0.0, gpus=encoders)
    generation = IndexRoot(bench.scratch / "index-shards").current()
    listed = [shard.id for shard in scan(str(folder)).shards]
    began = time.perf_counter()
    known = read_records(
        generation.path,
        listed,
        generation.manifest.fingerprint_digest,
        sealed=True,
        compacted=generation.manifest.compacted,
    )
    reading = time.perf_counter() - began
    commits = {}
    for part in (count // 8, count // 4, count // 2, count):
        began = time.perf_counter()
        commit(
            generation.path, generation.manifest.specs, [known[shard] for shard in listed[:part]]
        )
        commits[str(part)] = round((time.perf_counter() - began) / part * 1e3, 4)
    return {
        "shards": count,
        **_costs(watch, report, count),
        "start_to_published_s": round(report.seconds.total, 1),
        "reading_records_ms_a_shard": round(reading / count * 1e3, 3),
        "commit_ms_a_shard_by_shards": commits,
        "many_encoders": {"encoders": encoders, **_costs(crowd, crowded, count)},
    }


def _costs(watch: _MemoryWatch, report: BuildReport, count: int) -> dict[str, Any]:
    """What a build of `count` shards took: of the driver, of time, of memory."""
    return {
        "driver_cpu_ms_a_shard": round(watch.cpu_s / count * 1e3, 3),
        "wall_ms_a_shard": round(report.seconds.encode / count * 1e3, 3),
        "seconds": {name: round(value, 2) for name, value in asdict(report.seconds).items()},
        "memory_mb_by_tenths": watch.tenths(),
    }


class _MemoryWatch:
    """Memory of the driver and of its largest actor (resident) and of the object store, once a
    second, and the driver's processor time, while the encoder is there.
    """

    def __init__(self) -> None:
        import psutil

        self._own = psutil.Process()
        self._samples: list[dict[str, float]] = []
        self._cpu: list[float] = []

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time of the driver, all its threads."""
        return self._cpu[-1] - self._cpu[0] if self._cpu else 0.0

    def __enter__(self) -> _MemoryWatch:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil
        import ray
        from ray.exceptions import RayError

        while not self._ended.wait(1.0):
            with contextlib.suppress(psutil.Error, RayError, OSError):
                # a process that ends meanwhile, a Ray that does
                below = self._own.children(recursive=True)
                workers = [p for p in below if "EncodeShard" in "".join(p.cmdline())]
                if not workers and not self._cpu:
                    continue
                self._cpu.append(time.process_time())
                if not workers:
                    # once more where they are gone: a short run is over between two looks
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
            name: [
                round(max(s[name] for s in samples[at : at + size]))
                for at in range(0, len(samples), size)
            ]
            for name in (samples[0] if samples else {})
        }
