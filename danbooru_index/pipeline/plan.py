"""The plan of a build: all that is decided before the first forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

from danbooru_index.choices import DeviceInfo
from danbooru_index.cluster.resources import ClusterPlan, plan_cluster
from danbooru_index.config import BuildConfig
from danbooru_index.errors import UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.manifest import Fingerprint, Manifest, ModelRef
from danbooru_index.ingest.sampling import InputSamples
from danbooru_index.ingest.scan import InputScan
from danbooru_index.model.checkpoint import Checkpoint, hidden_size, longest_text
from danbooru_index.pipeline.projection import Projection, obtain
from danbooru_index.pipeline.protocol import WorkerSettings
from danbooru_index.pipeline.reading import Reading
from danbooru_index.pipeline.worker_device import device_on_worker
from danbooru_index.progress import StartUp


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build is to do: its input, model, devices and workers, and the generation that will
    come of it (`wanted`).

    `started`: when the command began, by the monotonic clock. `tokens_per_text`: the mean, from a
    sample.
    """

    config: BuildConfig
    started: float
    scan: InputScan
    samples: InputSamples
    tokens_per_text: float
    checkpoint: Checkpoint
    cluster: ClusterPlan
    device: DeviceInfo
    settings: WorkerSettings
    wanted: Manifest
    projection: Projection | None = None


def make_plan(
    config: BuildConfig,
    started: float,
    reading: Reading,
    root: IndexRoot,
    start_up: StartUp,
    *,
    inherited: bool,
) -> BuildPlan:
    """Decide everything, on the connected cluster; a ColBERT projection is fitted here, on a
    worker.

    `inherited`: the cluster's workers have this project's environment from their start. Raises
    `UsageError`, `ModelError`, `DeviceError`, `ClusterError` or `BuildFailedError`.
    """
    start_up.step("planning")
    cluster = plan_cluster(config, len(reading.scan.shards), inherited=inherited)
    model = reading.model_for(cluster.device)
    device = device_on_worker(cluster, config)
    checkpoint = model.checkpoint()
    dim = _checked_dim(checkpoint, config)
    settings = _settings(config, cluster, device, checkpoint, dim)
    fingerprint = Fingerprint(checkpoint.model_id, device.precision, config.max_length)
    projection = None
    samples = reading.samples.result()
    if settings.colbert_dim < dim:
        start_up.step("fitting the projection")
        projection = obtain(
            root, fingerprint, reading.scan.digest, samples, cluster, settings, config
        )
        fingerprint = replace(fingerprint, codec=projection.codec.name)
    wanted = Manifest(
        id="",
        fingerprint=fingerprint,
        fingerprint_digest=fingerprint.digest,
        model=ModelRef(checkpoint.name, checkpoint.path, checkpoint.model_id),
        dim=dim,
        colbert_dim=settings.colbert_dim,
        input_digest=reading.scan.digest,
        shards=tuple(shard.id for shard in reading.scan.shards),
        input=config.shards,
        query_instruction=config.query_instruction,
        fidelity=projection.fidelity if projection else None,
        nsfw_marks=reading.scan.nsfw_marks,
    )
    return BuildPlan(
        config=config,
        started=started,
        scan=reading.scan,
        samples=samples,
        tokens_per_text=model.tokens_per_text(),
        checkpoint=checkpoint,
        cluster=cluster,
        device=device,
        settings=replace(settings, fingerprint=fingerprint.digest, codec=fingerprint.codec),
        wanted=wanted,
        projection=projection,
    )


def _checked_dim(checkpoint: Checkpoint, config: BuildConfig) -> int:
    """The model's width; raise `UsageError` for too long texts or too wide a codec."""
    longest, dim = longest_text(checkpoint), hidden_size(checkpoint)
    if config.max_length > longest:
        raise UsageError(
            f"--max-length {config.max_length}: {checkpoint.name} takes at most {longest} tokens"
        )
    if config.colbert_dim and config.colbert_dim > dim:
        raise UsageError(
            f"--colbert-dim {config.colbert_dim}: {checkpoint.name} has {dim} values a vector"
        )
    return dim


def _settings(
    config: BuildConfig, cluster: ClusterPlan, device: DeviceInfo, checkpoint: Checkpoint, dim: int
) -> WorkerSettings:
    """What every actor of this build needs to make its tokeniser or encoder."""
    return WorkerSettings(
        model=checkpoint.name,
        model_path=checkpoint.path,
        model_id=checkpoint.model_id,
        model_stamp=checkpoint.stamp,
        device=cluster.device.value,
        precision=device.precision,
        max_length=config.max_length,
        dim=dim,
        colbert_dim=config.colbert_dim or dim,
        tokens_per_batch=config.tokens_per_batch,
        threads=cluster.threads,
        slice_bytes=config.tuning.slice_bytes,
        hang_s=config.tuning.hang_s,
        failpoints=config.failpoints,
        encoder=config.encoder,
    )
