"""Ray: starting or joining a cluster, and what a build may take of it. Part of the engine."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import logging
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from danbooru_index.config import BuildConfig, Device, worker_environment
from danbooru_index.devices import cpu_count, nvidia_driver, uncollected
from danbooru_index.errors import ClusterError, DeviceError, first_line
from danbooru_index.signals import deaf, interrupting_exit, restoring, terminable

OBJECT_STORE_BYTES = 256 << 20
CORES_PER_ENCODER = 8
CALLS_AT_ONCE = (3, 10)  # the least and the most shards that an encoder has in hand: two on the device, others written
CALL_BYTES = 1 << 30  # of a node's memory for each: its slice of 128 MB in a few copies
TOKENIZER_CPUS = 0.25
PATIENCE_S = 60.0
NODES_S = 1800.0


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """How many encoders run, on what; `max_encoders` None: as many as GPUs join; `calls`: shards that each has in hand.

    `runtime_env`: what the actors' processes must be told; nothing where they inherit it, so that Ray gives them those
    that it has started already instead of starting others (a second of start-up on two cores).
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


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[bool]:
    """Join the cluster at `address` (or `RAY_ADDRESS`), else start a private Ray on this machine; end it afterwards.

    Yields whether its workers have the `worker_environment` from their start: those of a private Ray. A Ray that this
    process has already started is used and left running. SIGTERM becomes KeyboardInterrupt inside.
    Raises `ClusterError` when the cluster cannot be reached.
    """
    private = address is None and "RAY_ADDRESS" not in os.environ
    if private and not ray_runs():
        _prepare_private_ray()
    with uncollected():
        import ray
        import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)  # its log file keeps everything
    if ray.is_initialized():
        yield False
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if private:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cpu_count()}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        protect_token()
        if address is not None:
            _check_reachable(address)
            options["address"] = address
    with restoring():
        with _environment(worker_environment() if private else {}):
            context = _start(options, address)
        try:
            with interrupting_exit(), terminable():  # after `ray.init`, which installs its own handlers
                if not private:
                    refuse_open_head(ray.get_runtime_context().gcs_address, context.dashboard_url)
                yield private
        finally:
            with deaf(), uncollected(), contextlib.suppress(Exception):
                ray.shutdown()


def ray_runs() -> bool:
    """Whether this process has started or joined a Ray. Does not import it: that is when Ray reads its settings."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _start(options: dict[str, Any], address: str | None) -> Any:
    """`ray.init`; raise `ClusterError` where it fails, and leave nothing behind where it is stopped."""
    import ray

    try:
        with interrupting_exit():
            return ray.init(**options)
    except Exception as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ClusterError(
            f"Ray at {where}: {type(error).__name__}: {first_line(error)}; check --address, and RAY_AUTH_MODE"
        ) from None
    except BaseException:  # stopped while it starts: what it has started so far must not stay
        with deaf(), uncollected():
            ray.shutdown()
        raise


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """These variables too, for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _prepare_private_ray() -> None:
    """Environment for a Ray of this process's own: on loopback only, behind a token that nobody else has.

    Ray reads the first variable and those of the token when it is imported; without the first its servers listen on every
    address. A job's own settings must not reach it. When its control store dies, the driver gives up in seconds instead of
    a minute. Raises `ClusterError` where Ray has been imported already, without a word on tokens.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    if "RAY_AUTH_MODE" not in os.environ:
        if "ray" in sys.modules:
            raise ClusterError(
                "ray was imported before danbooru_index could give a Ray of its own a token: import ray later, or call "
                "ray.init() yourself, or set RAY_AUTH_MODE (token or disabled) before importing it"
            )
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _check_reachable(address: str) -> None:
    """Raise `ClusterError` at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address}: nobody answers there ({error.strerror or error}); check --address, or start a head "
            "node with ray start --head"
        ) from None


def protect_token() -> None:
    """Make Ray's token file readable by its owner only: `ray get-auth-token --generate` leaves it open to all."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if mode & 0o077:
            path.chmod(0o600)
            print(f"{path}: was readable by others; now only by you (mode 600)", file=sys.stderr)


def refuse_open_head(gcs_address: str, dashboard: str | None) -> None:
    """Raise `ClusterError` for a Ray that strangers can command: beyond loopback, and without a token.

    Its control store counts by the address it gives itself, its job server by whether another address of this machine
    reaches it. A control store that also answers elsewhere is only warned about: Ray binds it to all addresses.
    """
    host, _, port = gcs_address.rpartition(":")
    remedy = "start it with RAY_AUTH_MODE=token (ray get-auth-token --generate), or on loopback only"
    if _asks_no_token(host, int(port)):
        if not _is_loopback(host):
            raise ClusterError(
                f"the Ray head at {gcs_address} asks for no token, and whoever reaches it can run any command: {remedy}"
            )
        if any(_asks_no_token(other, int(port)) for other in _own_addresses()):
            print(
                f"warning: the Ray head at {gcs_address} answers other addresses too, without a token", file=sys.stderr
            )
    where, _, web_port = (dashboard or "").rpartition(":")
    for other in {where, *_own_addresses()} if web_port.isdigit() else ():
        if not _is_loopback(other) and _serves_jobs(other, int(web_port)):
            raise ClusterError(
                f"Ray's job server at {other}:{web_port} runs any command for whoever reaches it: {remedy}"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _own_addresses() -> list[str]:
    """Addresses of this machine that others can reach (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            own = str(probe.getsockname()[0])
        except OSError:
            return []
    return [] if _is_loopback(own) else [own]


def _asks_no_token(host: str, port: int) -> bool:
    """Whether a control store answers a question that carries no token. Ray has no public call for this."""
    import grpc

    try:
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=3)
    except grpc.RpcError:
        return False
    return True


def _serves_jobs(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", "/api/jobs/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def on_worker(num_gpus: int, num_cpus: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` once in a worker with so many GPUs; raise `ClusterError` where that fails."""
    import ray
    from ray.exceptions import RayError

    environment = {"env_vars": worker_environment()}
    remote = ray.remote(max_calls=1)(function).options(num_cpus=num_cpus, num_gpus=num_gpus, runtime_env=environment)
    reference = remote.remote(*arguments)
    try:
        while not ray.wait([reference], timeout=PATIENCE_S)[0]:
            print("waiting for a worker of the cluster (other jobs may hold its GPUs)", file=sys.stderr)
        return ray.get(reference)
    except RayError as error:
        raise ClusterError(f"a worker of this cluster cannot run the job: {first_line(error)}") from None


def plan_cluster(config: BuildConfig, pending: int, *, inherited: bool = False) -> ClusterPlan:
    """What a build of `pending` shards takes of the connected cluster, whose workers have the `worker_environment` where
    it is `inherited`. Raises `DeviceError` without the GPU asked for."""
    nodes = nodes_at_work()
    if wanted := gpus_for(config.device, config.num_gpus):
        plan = _plan_gpus(nodes, max(1, min(wanted, pending)), config.num_gpus)
    else:
        plan = _plan_cpus([float(node.get("CPU", 0)) for node in nodes], pending, len(nodes) == 1)
    return replace(plan, runtime_env={}) if inherited else plan


def _plan_gpus(nodes: list[dict[str, float]], encoders: int, limit: int | None) -> ClusterPlan:
    """Encoders of a GPU each, and two tokenisers for each as far as the CPUs of the cluster go.

    Writing a shard in full width takes a core 0.5 s and a fast GPU is done with one in 0.1 s, so as many are written at
    once as a GPU has cores and memory for.
    """
    at_work = [node for node in nodes if node.get("GPU", 0) >= 1]
    per_gpu = min(node.get("CPU", 0) / node["GPU"] for node in at_work)
    memory = min(node.get("memory", math.inf) / node["GPU"] for node in at_work)
    least, most = CALLS_AT_ONCE
    calls = max(least, int(min(most, per_gpu, memory / CALL_BYTES)))
    num_cpus = min(1.0, max(0.1, _floor(per_gpu - 2 * TOKENIZER_CPUS)))
    left = sum(node.get("CPU", 0) for node in nodes) - encoders * num_cpus
    tokenizers = max(1, min(2 * encoders, int(left / TOKENIZER_CPUS + 1e-6)))
    return ClusterPlan(Device.CUDA, encoders, limit, num_cpus, 1, None, tokenizers, len(nodes) == 1, calls)


def gpus_for(device: Device, num_gpus: int | None) -> int:
    """The GPUs of the connected cluster that a job takes; 0: it runs on CPUs. Raises `DeviceError` for more than there are."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes_at_work()))
    if device is not Device.CPU and gpus:
        if num_gpus and num_gpus > gpus:
            raise DeviceError(f"--num-gpus {num_gpus}, but this cluster has {gpus}; ask for fewer, or add nodes")
        return num_gpus or gpus
    if device is Device.CUDA or num_gpus:
        raise DeviceError(_no_gpu())
    return 0


def _alive() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_at_work(
    alive: Callable[[], list[dict[str, float]]] = _alive, limit_s: float = NODES_S, pause_s: float = 1.0
) -> list[dict[str, float]]:
    """What every node of the connected cluster has. Where none has a CPU, its first worker is still starting (the head of
    `cluster.yaml` has none): waited for, lest a job be planned for a cluster without GPUs. Raises `ClusterError`."""
    started = told = time.monotonic()
    while True:
        nodes = alive()
        if any(node.get("CPU", 0) for node in nodes):
            return nodes
        now = time.monotonic()
        if now - started > limit_s:
            raise ClusterError(
                f"no node of this cluster has a CPU after {limit_s / 60:.0f} minutes: ray status says why"
            )
        if now - told > PATIENCE_S / 4:
            told = now
            print("waiting for the first node of the cluster that can work", file=sys.stderr)
        time.sleep(pause_s)


def _no_gpu() -> str:
    card = nvidia_driver()
    if card is None:
        return "this cluster has no GPU; pass --device cpu"
    return (
        f"this cluster has no GPU, though this machine has a {card[0]} (driver {card[1]}): Ray does not see it; "
        "check CUDA_VISIBLE_DEVICES and the driver, or pass --device cpu"
    )


def _plan_cpus(cores: list[float], pending: int, local: bool) -> ClusterPlan:
    """Encoders of up to `CORES_PER_ENCODER` cores; a little is left on every node for the tokenisers."""
    smallest = min((c for c in cores if c >= 1), default=1.0)
    per_node = max(1, int(smallest // CORES_PER_ENCODER))
    total = sum(max(1, int(c // CORES_PER_ENCODER)) for c in cores if c >= 1) or 1
    encoders = max(1, min(total, pending))
    tokenizers = min(encoders, 4)
    num_cpus = max(0.5, _floor((smallest - tokenizers * TOKENIZER_CPUS) / per_node))
    threads = max(1, int(smallest // per_node))
    return ClusterPlan(Device.CPU, encoders, encoders, num_cpus, 0, threads, tokenizers, local, CALLS_AT_ONCE[0])


def _floor(cpus: float) -> float:
    """Rounded down to hundredths: what is asked for must fit."""
    return int(cpus * 100) / 100
