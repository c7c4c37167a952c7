"""Checking an installation: versions, device, model, Ray, disk; one line of advice a fault.

A function for each check, one after the other; in one module, as they are run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from danbooru_index.choices import Device, DeviceInfo, Precision
from danbooru_index.cluster.resources import gpus_for, on_worker
from danbooru_index.cluster.session import ray_session
from danbooru_index.cluster.upload import LARGEST_SUBMISSION, measure_upload
from danbooru_index.config import (
    BASELINE_RECORDS,
    DEFAULT_MAX_LENGTH,
    PRODUCTION_MODEL,
    SAMPLE_TAGS,
)
from danbooru_index.errors import (
    DanbooruIndexError,
    DeviceError,
    ModelError,
    StorageError,
    UsageError,
)
from danbooru_index.index.estimate import index_bytes
from danbooru_index.machine import cpu_count
from danbooru_index.model.checkpoint import (
    Checkpoint,
    default_model,
    hidden_size,
    resolve_model,
    settings_of,
)
from danbooru_index.model.device import probe_device
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.shape import gpu_tokens_per_batch
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.storage.space import free_bytes
from danbooru_index.versions import INSTALL, version_problems

SHOWN_VERSIONS = ("ray", "torch", "transformers", "FlagEmbedding", "pyarrow", "lancedb", "pylance")
PRODUCTION_HIDDEN, PRODUCTION_BYTES = 1024, 1_140_000_000  # BGE-M3, in half precision
SMALLEST_GPU_MEMORY = 2_500_000_000
TOKENS_PER_TAG = 12.7  # measured on 925,428 tags
SMALL_COLBERT = 128

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    """What to check: `model` None: this machine's default; room for `records` below `path`."""

    model: str | None = None
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    records: int = BASELINE_RECORDS
    path: str = "."
    address: str | None = None

    def __post_init__(self) -> None:
        if self.records < 1:
            raise UsageError(f"--records must be at least 1, not {self.records}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice`: what to do, where it is not right."""

    what: str
    found: str
    advice: str = ""


@dataclass(slots=True)
class DoctorReport:
    """Everything that was looked at, in order."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not any(finding.advice for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}

    def to_text(self) -> str:
        lines = []
        for finding in self.findings:
            lines.append(f"{'!!' if finding.advice else 'ok'}  {finding.what:<9} {finding.found}")
            if finding.advice:
                lines.append(f"    {'':<9} -> {finding.advice}")
        wrong = sum(1 for finding in self.findings if finding.advice)
        lines.append(
            "everything is in order"
            if not wrong
            else f"{wrong} of {len(self.findings)} are not right"
        )
        return "\n".join(lines)


def doctor(config: DoctorConfig) -> DoctorReport:
    """Look at everything that a build needs; what is wrong is in the report, never raised."""
    report = DoctorReport(list(_versions()))
    if not report.healthy:  # whatever else fails would fail for that reason
        return report
    info = _tried(report, "device", lambda: _device(config))
    checkpoint = _tried(report, "model", lambda: _model(config, info)) if info else None
    if info and checkpoint:
        _tried(report, "encode", lambda: _encode(checkpoint, info))
    _tried(report, "ray", lambda: _ray(config))
    if Path("jobs", "build.py").is_file():
        _tried(report, "upload", _upload)
    _tried(
        report,
        "disk",
        lambda: _disk(config, hidden_size(checkpoint) if checkpoint else PRODUCTION_HIDDEN),
    )
    return report


def _tried(report: DoctorReport, what: str, look: Callable[[], tuple[str, T]]) -> T | None:
    """What `look` found, with its value; the message of this project's error is the advice."""
    try:
        found, value = look()
    except DanbooruIndexError as error:
        report.findings.append(Finding(what, "not usable", " ".join(str(error).split())))
        return None
    except OSError as error:
        report.findings.append(
            Finding(what, "not usable", f"{error.filename or what}: {error.strerror or error}")
        )
        return None
    report.findings.append(Finding(what, found))
    return value


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", python)
    problems = version_problems()
    for name in SHOWN_VERSIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
            problems.setdefault(name, f"{name} is needed")
        yield Finding(name, found, f"{problems[name]}: {INSTALL}" if name in problems else "")


def _device(config: DoctorConfig) -> tuple[str, DeviceInfo]:
    """The device, with the settings that fit its memory. Raises `DeviceError`."""
    info = probe_device(config.device, config.precision)
    if info.kind == "cpu":
        return f"{info.name}: no GPU in use; --precision {info.precision}", info
    if info.free_memory < SMALLEST_GPU_MEMORY:
        raise DeviceError(
            f"{info.name}: {info.free_memory / 1e9:.1f} GB of its {info.memory / 1e9:.1f} GB are"
            f" free; {PRODUCTION_MODEL} needs {SMALLEST_GPU_MEMORY / 1e9:.1f}: end what holds it,"
            " or pass --device cpu"
        )
    tokens = gpu_tokens_per_batch(
        info.free_memory - PRODUCTION_BYTES, PRODUCTION_HIDDEN, 4 * PRODUCTION_HIDDEN
    )
    free = f"{info.free_memory / 1e9:.1f} of {info.memory / 1e9:.1f} GB free"
    return (
        (
            f"{info.name}, {free}: --precision {info.precision} --tokens-per-batch {tokens} (the"
            " defaults)"
        ),
        info,
    )


def _model(config: DoctorConfig, info: DeviceInfo) -> tuple[str, Checkpoint]:
    """The model asked for, or the default; all its files are there. Raises `ModelError`."""
    checkpoint = resolve_model(config.model or default_model(info.kind))
    shape = settings_of(checkpoint)
    size = sum(path.stat().st_size for path in Path(checkpoint.path).iterdir() if path.is_file())
    asked = "" if config.model else " (the default here)"
    found = (
        f"{checkpoint.name}{asked}: id {checkpoint.model_id[:12]}, {shape['num_hidden_layers']}"
        " layers, "
    )
    return (
        found + f"{shape['hidden_size']} wide, {size / 1e6:,.1f} MB in {checkpoint.path}",
        checkpoint,
    )


def _encode(checkpoint: Checkpoint, info: DeviceInfo) -> tuple[str, None]:
    """All three outputs of a few texts, twice: the first call warms up. Raises `ModelError`."""
    tokenizer = Tokenizer(checkpoint.path, DEFAULT_MAX_LENGTH)
    encoder = Encoder(checkpoint.path, Device(info.kind), Precision(info.precision))
    texts = [
        json.loads(line)["text"] for line in SAMPLE_TAGS.read_text(encoding="utf-8").splitlines()
    ]
    batch = tokenizer(texts)
    encoder.encode(batch)
    started = time.perf_counter()
    embeddings = encoder.encode(batch)
    seconds = time.perf_counter() - started
    if len(embeddings.non_finite):
        raise ModelError(
            f"{checkpoint.name}: {len(embeddings.non_finite)} of {len(texts)} texts have no finite"
            " output: bad weights"
        )
    rate = len(texts) / seconds
    hours = BASELINE_RECORDS / rate / 3600
    return (
        (
            f"{len(texts)} texts, dense, sparse and ColBERT, in {seconds:.2f} s: {rate:,.0f}"
            f" tags/s, and {hours:,.1f} h for {BASELINE_RECORDS:,} (encoding alone)"
        ),
        None,
    )


def _ray(config: DoctorConfig) -> tuple[str, None]:
    """A task on the cluster, or on a private Ray. Raises `ClusterError` or `DeviceError`."""
    started = time.perf_counter()
    with ray_session(config.address):
        gpus = gpus_for(config.device, None)
        cpus = on_worker(min(gpus, 1), 0.1, cpu_count)
    where = config.address or "private"
    return (
        (
            f"{where}: a task ran on a node of {cpus} cores, {gpus} GPUs,"
            f" {time.perf_counter() - started:.1f} s"
        ),
        None,
    )


def _upload() -> tuple[str, None]:
    """What `ray job submit --working-dir .` would upload. Raises `StorageError` for too much."""
    found = measure_upload(Path.cwd())
    said = (
        f"ray job submit --working-dir . uploads {found.files:,} files, {found.bytes / 1e6:,.1f} MB"
        " before they are packed"
    )
    if found.bytes > LARGEST_SUBMISSION:
        raise StorageError(
            f"{said}, and a job server takes {LARGEST_SUBMISSION / 1e6:,.0f} ({found.largest()}):"
            " name them in .rayignore, or keep data in another folder"
        )
    return said, None


def _disk(config: DoctorConfig, hidden: int) -> tuple[str, None]:
    """Room below `path` for so many records. Raises `StorageError` if no codec's tables fit."""
    place = Path(config.path).resolve()
    while not place.exists():
        place = place.parent
    free = free_bytes(place)
    needed = {
        dim: index_bytes(config.records, hidden, dim, TOKENS_PER_TAG)
        for dim in (hidden, SMALL_COLBERT)
        if dim <= hidden
    }
    sizes = ", ".join(f"{size / 1e9:,.1f} GB with ColBERT at {dim}" for dim, size in needed.items())
    found = f"{free / 1e9:,.1f} GB free at {place}; {config.records:,} records take {sizes}"
    if min(needed.values()) > free:
        raise StorageError(f"{found}: free some, or build elsewhere")
    if needed[hidden] > free:
        raise StorageError(f"{found}: pass --colbert-dim {SMALL_COLBERT}, or free some")
    return found, None
