"""The device and precision of a build, as a worker with the encoder's resources sees them."""

from __future__ import annotations

from danbooru_index.cluster.resources import TOKENIZER_CPUS, ClusterPlan, on_worker
from danbooru_index.config import BuildConfig, Device, DeviceInfo, Precision
from danbooru_index.errors import DeviceError
from danbooru_index.model.device import probe_device


def device_on_worker(cluster: ClusterPlan, config: BuildConfig) -> DeviceInfo:
    """The device and precision as a worker with the encoder's resources sees them; a simulated one says so itself.

    Raises `DeviceError` where torch and Ray do not see the same.
    """
    if config.encoder is not None and config.encoder.device is not None:
        return config.encoder.device
    wanted = Device.CUDA if cluster.device is Device.CUDA else config.device
    if cluster.device is Device.CPU and cluster.local:
        info = probe_device(wanted, config.precision)
    else:
        info = _probe_remotely(cluster, wanted, config.precision)
    if info.kind != cluster.device.value:
        raise DeviceError(
            f"Ray offers no GPU here, but torch sees a {info.name}: start Ray where it sees the card (CUDA_VISIBLE_DEVICES, "
            "ray start --num-gpus 1), or pass --device cpu"
        )
    return info


def _probe_remotely(cluster: ClusterPlan, device: Device, precision: Precision) -> DeviceInfo:
    def probe(device: Device, precision: Precision) -> DeviceInfo | str:
        try:
            return probe_device(device, precision)
        except DeviceError as error:
            return str(error)

    answer: DeviceInfo | str = on_worker(cluster.num_gpus, TOKENIZER_CPUS, probe, device, precision)
    if isinstance(answer, str):
        raise DeviceError(answer)
    return answer
