"""What a job may take of a cluster: devices, encoders, and a task on one of its workers."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from danbooru_index.choices import Device
from danbooru_index.cluster.autoscaling import autoscaled, await_first_node
from danbooru_index.cluster.ray_errors import worker_problem
from danbooru_index.config import DEFAULT_WAIT_FOR_NODES_S, BuildConfig
from danbooru_index.errors import ClusterError, DeviceError
from danbooru_index.model.device import nvidia_driver

log = logging.getLogger(__name__)

HF_VARIABLES = (
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
)

CORES_PER_ENCODER = 8
CALL_BYTES = 1 << 30  # of a node's memory for each: its slice of 128 MB in a few copies
TOKENIZER_CPUS = 0.25
PATIENCE_S = 60.0


def worker_environment() -> dict[str, str]:
    """The variables that must reach the workers of a cluster: the hub's, and quiet Lance logs.

    `HF_TOKEN` is left out: Ray shows a job's `runtime_env` in its dashboard and logs. The driver
    fetches the model.
    """
    passed = {
        name: os.environ[name] for name in HF_VARIABLES if name in os.environ and name != "HF_TOKEN"
    }
    quiet = {
        "LANCE_LOG": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    # Measured with the tiny checkpoint: oneDNN kept a primitive for each of 1,024 shapes, 0.4 GB
    # more, and no faster.
    small = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "MALLOC_ARENA_MAX": "2"}
    return passed | quiet | small


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """How many encoders run, on what; `max_encoders` None: as many as nodes join have room for;
    `calls`: shards that each has in hand.

    `runtime_env`: what the actors' processes must be told; nothing where they inherit it, so that
    Ray gives them those that it has started already instead of starting others (a second of
    start-up on two cores).
    """

    device: Device
    encoders: int
    max_encoders: int | None
    num_cpus: float
    num_gpus: int
    threads: int | None
    tokenizers: int
    local: bool
    calls: int
    runtime_env: dict[str, Any] = field(default_factory=lambda: {"env_vars": worker_environment()})

    @property
    def in_hand(self) -> int:
        """The most shards that all encoders have in hand."""
        return self.encoders * (self.calls + 1)


def on_worker(num_gpus: int, num_cpus: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` once in a worker with so many GPUs; raise `ClusterError` where that fails."""
    import ray
    from ray.exceptions import RayError

    environment = {"env_vars": worker_environment()}
    remote = ray.remote(max_calls=1)(function).options(
        num_cpus=num_cpus, num_gpus=num_gpus, runtime_env=environment
    )
    reference = remote.remote(*arguments)
    try:
        while not ray.wait([reference], timeout=PATIENCE_S)[0]:
            log.info("waiting for a worker of the cluster (other jobs may hold its GPUs)")
        return ray.get(reference)
    except RayError as error:
        raise ClusterError(worker_problem(error)) from None


def plan_cluster(config: BuildConfig, pending: int, *, inherited: bool = False) -> ClusterPlan:
    """What a build of `pending` shards takes of the connected cluster, whose workers have the
    `worker_environment` where it is `inherited`. Raises `DeviceError` without the GPU asked for.
    """
    limit_s = config.wait_for_nodes_s
    if not inherited:
        _ask_for_nodes(config)
    nodes = nodes_at_work(limit_s=limit_s)
    calls = config.tuning.calls_at_once
    if wanted := gpus_for(config.device, config.num_gpus):
        plan = _plan_gpus(nodes, max(1, min(wanted, pending)), config.num_gpus, calls)
    else:
        plan = _plan_cpus(
            [float(node.get("CPU", 0)) for node in nodes], pending, len(nodes) == 1, calls[0]
        )
    return replace(plan, runtime_env={}, max_encoders=plan.encoders) if inherited else plan


def _ask_for_nodes(config: BuildConfig) -> None:
    """Where no node of the connected cluster has a GPU, or none a CPU, ask its autoscaler for one.
    Raises `DeviceError` where that has no GPU and one is asked for.
    """

    def have(kind: str) -> bool:
        return any(node.get(kind, 0) > 0 for node in _alive())

    limit_s = config.wait_for_nodes_s
    if config.device is not Device.CPU and not have("GPU") and autoscaled():
        if await_first_node(limit_s, TOKENIZER_CPUS, 1):
            return
        if config.device is Device.CUDA or config.num_gpus:
            raise DeviceError(_no_gpu())
    if not have("CPU"):
        await_first_node(limit_s, TOKENIZER_CPUS, 0)


def _plan_gpus(
    nodes: list[dict[str, float]], encoders: int, limit: int | None, calls_at_once: tuple[int, int]
) -> ClusterPlan:
    """Encoders of a GPU each, and two tokenisers for each as far as the CPUs of the cluster go.

    Writing a shard in full width takes a core 0.5 s and a fast GPU is done with one in 0.1 s, so as
    many are written at once as a GPU has cores and memory for.
    """
    at_work = [node for node in nodes if node.get("GPU", 0) >= 1]
    per_gpu = min(node.get("CPU", 0) / node["GPU"] for node in at_work)
    memory = min(node.get("memory", math.inf) / node["GPU"] for node in at_work)
    least, most = calls_at_once
    calls = max(least, int(min(most, per_gpu, memory / CALL_BYTES)))
    num_cpus = min(1.0, max(0.1, _floor(per_gpu - 2 * TOKENIZER_CPUS)))
    left = sum(node.get("CPU", 0) for node in nodes) - encoders * num_cpus
    tokenizers = max(1, min(2 * encoders, int(left / TOKENIZER_CPUS + 1e-6)))
    return ClusterPlan(
        Device.CUDA, encoders, limit, num_cpus, 1, None, tokenizers, len(nodes) == 1, calls
    )


def gpus_for(device: Device, num_gpus: int | None) -> int:
    """The cluster's GPUs that a job takes; 0: CPUs. Raises `DeviceError` for too many."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes_at_work()))
    if device is not Device.CPU and gpus:
        if num_gpus and num_gpus > gpus and not autoscaled():
            raise DeviceError(
                f"--num-gpus {num_gpus}, but this cluster has {gpus}; ask for fewer, or add nodes"
            )
        return num_gpus or gpus
    if device is Device.CUDA or num_gpus:
        raise DeviceError(_no_gpu())
    return 0


def _alive() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_at_work(
    alive: Callable[[], list[dict[str, float]]] = _alive,
    limit_s: float = DEFAULT_WAIT_FOR_NODES_S,
    pause_s: float = 1.0,
) -> list[dict[str, float]]:
    """What every node of the connected cluster has. Where none has a CPU, its first worker is still
    starting (the head of `cluster.yaml` has none): waited for, lest a job be planned for a cluster
    without GPUs. Raises `ClusterError`.
    """
    started = told = time.monotonic()
    while True:
        nodes = alive()
        if any(node.get("CPU", 0) for node in nodes):
            return nodes
        now = time.monotonic()
        if now - started > limit_s:
            raise ClusterError(
                f"no node of this cluster has a CPU after {limit_s / 60:.0f} minutes: ray status"
                " says why"
            )
        if now - told > PATIENCE_S / 4:
            told = now
            log.info("waiting for the first node of the cluster that can work")
        time.sleep(pause_s)


def _no_gpu() -> str:
    card = nvidia_driver()
    if card is None:
        return "this cluster has no GPU; pass --device cpu"
    return (
        f"this cluster has no GPU, though this machine has a {card[0]} (driver {card[1]}): Ray does"
        " not see it; check CUDA_VISIBLE_DEVICES and the driver, or pass --device cpu"
    )


def _plan_cpus(cores: list[float], pending: int, local: bool, calls: int) -> ClusterPlan:
    """Encoders of up to `CORES_PER_ENCODER` cores; each node keeps some for tokenizers."""
    smallest = min((c for c in cores if c >= 1), default=1.0)
    per_node = max(1, int(smallest // CORES_PER_ENCODER))
    total = sum(max(1, int(c // CORES_PER_ENCODER)) for c in cores if c >= 1) or 1
    encoders = max(1, min(total, pending))
    tokenizers = min(encoders, 4)
    num_cpus = max(0.5, _floor((smallest - tokenizers * TOKENIZER_CPUS) / per_node))
    threads = max(1, int(smallest // per_node))
    return ClusterPlan(Device.CPU, encoders, None, num_cpus, 0, threads, tokenizers, local, calls)


def _floor(cpus: float) -> float:
    """Rounded down to hundredths: what is asked for must fit."""
    return int(cpus * 100) / 100
