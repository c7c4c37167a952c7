"""What the driver reads before Ray starts: the input, and beside it the model's files."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from danbooru_index.choices import Device
from danbooru_index.cluster.session import cluster_address, ray_runs
from danbooru_index.config import BuildConfig
from danbooru_index.ingest.sampling import InputSamples, draw_samples
from danbooru_index.ingest.scan import InputScan, refuse_rejects, scan
from danbooru_index.model.checkpoint import default_model
from danbooru_index.model.device import nvidia_driver
from danbooru_index.pipeline.model_preload import ModelPreload, in_background
from danbooru_index.progress import StartUp


@dataclass(frozen=True, slots=True)
class Reading:
    """The input as it was scanned; its samples and the model, which are still being read. `model`
    None: not known before the cluster's devices are.
    """

    config: BuildConfig
    scan: InputScan
    samples: Future[InputSamples]
    model: ModelPreload | None

    def model_for(self, device: Device) -> ModelPreload:
        """The model; if none was asked for, this device's default. Raises `ModelError`."""
        return self.model or _preload(self.config, default_model(device.value)).read(
            self.samples, self.config.max_length
        )


def read_input(config: BuildConfig, start_up: StartUp) -> Reading:
    """Scan the input, and begin to read the model and the samples.

    Raises `InputError`, `ModelError`, or under `--strict` `RejectedRecordsError`, before Ray has
    started.
    """
    start_up.step("finding the model")
    named = config.model or (default_model("cpu") if _without_gpu(config) else None)
    model = _preload(config, named) if named else None
    start_up.step("reading the input")
    found = scan(config.shards, nsfw_words=config.nsfw_words)
    if config.strict:
        refuse_rejects(found)
    samples = in_background(draw_samples, found.shards, projected=config.colbert_dim is not None)
    if model is not None:
        start_up.step("checking the model")
        model.read(samples, config.max_length)
    return Reading(config, found, samples, model)


def _preload(config: BuildConfig, name: str) -> ModelPreload:
    return ModelPreload(name, whole=config.encoder is None)


def _without_gpu(config: BuildConfig) -> bool:
    """Whether it is plain, before Ray starts, that no GPU will be found."""
    alone = cluster_address(config.address) is None
    return config.device is Device.CPU or (alone and nvidia_driver() is None and not ray_runs())
