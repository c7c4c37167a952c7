"""The device as a worker sees it: which one, and is it really there?"""

from __future__ import annotations

import os
from pathlib import Path

from danbooru_index.choices import Device, DeviceInfo, Precision
from danbooru_index.cluster.resources import TOKENIZER_CPUS, ClusterPlan, on_worker
from danbooru_index.config import BuildConfig
from danbooru_index.errors import DeviceError
from danbooru_index.model.device import card_count, probe_device


def device_on_worker(cluster: ClusterPlan, config: BuildConfig) -> DeviceInfo:
    """The device and precision as a worker with the encoder's resources sees them; a simulated one
    says so itself.

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
            f"Ray offers no GPU here, but torch sees a {info.name}: start Ray where it sees the"
            " card (CUDA_VISIBLE_DEVICES, ray start --num-gpus 1), or pass --device cpu"
        )
    return info


def _probe_remotely(cluster: ClusterPlan, device: Device, precision: Precision) -> DeviceInfo:
    def probe(device: Device, precision: Precision) -> DeviceInfo | str:
        try:
            return invented_cards() or probe_device(device, precision)
        except DeviceError as error:
            return str(error)

    answer: DeviceInfo | str = on_worker(cluster.num_gpus, TOKENIZER_CPUS, probe, device, precision)
    if isinstance(answer, str):
        raise DeviceError(answer)
    return answer


def invented_cards() -> str:
    """On a node of which Ray offers more GPUs than it has cards (`ray start --num-gpus 2` with
    one): what to do; else empty. Two encoders on one card are asked for by naming it twice in
    `CUDA_VISIBLE_DEVICES`.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    offered = sum(int(n["Resources"].get("GPU", 0)) for n in ray.nodes() if n["NodeID"] == own)
    cards = card_count()
    if not cards or offered <= cards or _asked_for():
        return ""
    there = "1 card is" if cards == 1 else f"{cards} cards are"
    return (
        f"Ray offers {offered} GPUs on node {os.uname().nodename}, and {there} there: start Ray"
        f" there with --num-gpus {cards}, or, for several encoders on one card, with"
        " CUDA_VISIBLE_DEVICES=0,0"
    )


def _asked_for() -> bool:
    """Whether the raylet, whose child a worker is, was given a card more than once, or parts of
    cards (MIG). A worker's own `CUDA_VISIBLE_DEVICES` is what Ray gave to it.
    """
    try:
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    values = [e.partition(b"=")[2] for e in environment if e.startswith(b"CUDA_VISIBLE_DEVICES=")]
    named = values[0].split(b",") if values else []
    return len(named) > len(set(named)) or any(name.startswith(b"MIG-") for name in named)
