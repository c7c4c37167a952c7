"""A Ray of this process's own, or a cluster that is joined: started, named where it fails, and ended."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danbooru_index.cluster.addresses import check_address
from danbooru_index.cluster.security import protect_token, refuse_open_head
from danbooru_index.cluster.upload import refuse_large_upload
from danbooru_index.config import worker_environment
from danbooru_index.errors import ClusterError, in_one_line
from danbooru_index.model.device import cpu_count, uncollected
from danbooru_index.progress import tell
from danbooru_index.signals import deaf, descendants, end_processes, interrupting_exit, restoring, terminable

OBJECT_STORE_BYTES = 256 << 20
TRIES = 3  # to start a private Ray: on a busy machine one may take longer than Ray waits
START_S = 60
AT_ONCE_S = 5.0  # what fails sooner was not waited for in vain, and would fail again
TOLD_EVERY_S = 15.0
LONGEST_FOLDER = 39  # bytes: with Ray's own names after it, a socket's path has 107 at most
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
MEANINGLESS = re.compile(
    rb"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store"
)


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[bool]:
    """Join the cluster at `address` (or `RAY_ADDRESS`), else start a private Ray on this machine; end it afterwards.

    Yields whether its workers have the `worker_environment` from their start: those of a private Ray. A Ray that this
    process has already started is used and left running. SIGTERM becomes KeyboardInterrupt inside.
    Raises `ClusterError` when the cluster cannot be reached, or no Ray be started.
    """
    named = cluster_address(address)
    private = named is None
    if not ray_runs():
        if private:
            _prepare_private_ray()
        else:
            _prepare_to_join(str(named))
    with uncollected():
        import ray
        import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)  # its log file keeps everything
    if ray.is_initialized():
        yield False
        return
    with restoring():
        context = _start() if private else _join(str(named))
        try:
            with interrupting_exit(), terminable():  # after `ray.init`, which installs its own handlers
                if not private:
                    refuse_open_head(ray.get_runtime_context().gcs_address, context.dashboard_url)
                _spend_warning()
                yield private
        finally:
            with deaf(), uncollected(), contextlib.suppress(Exception):
                ray.shutdown()


def cluster_address(address: str | None) -> str | None:
    """The cluster that is joined, by option or by `RAY_ADDRESS`; None where this process starts a Ray of its own."""
    named = address or os.environ.get("RAY_ADDRESS")
    return named if named and named != "local" else None


def ray_runs() -> bool:
    """Whether this process has started or joined a Ray. Does not import it: that is when Ray reads its settings."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _prepare_private_ray() -> None:
    """Environment for a Ray of this process's own: on loopback only, behind a token that nobody else has.

    Ray reads the first variables and those of the token when it is imported; without the first its servers listen on every
    address, and under `uv run` it would upload the current folder to itself. A job's own settings must not reach it. When its
    control store dies, the driver gives up in seconds instead of a minute. Raises `ClusterError` where Ray has been imported
    already, without a word on tokens.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(START_S // 15))  # tries, of 15 s each
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "5")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_S))
    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    if "RAY_AUTH_MODE" not in os.environ:
        if "ray" in sys.modules:
            raise ClusterError(
                "ray was imported before danbooru_index could give a Ray of its own a token: import ray later, or call "
                "ray.init() yourself, or set RAY_AUTH_MODE (token or disabled) before importing it"
            )
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _prepare_to_join(address: str) -> None:
    """What can be known before Ray is imported; raise `ClusterError` for what would fail, or take minutes to."""
    protect_token()
    check_address(address)
    refuse_large_upload(Path.cwd())
    # For a control store that falls silent now, and for `auto`, which Ray resolves: two tries of 16 s instead of 20 of 41.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "5")


def _start() -> Any:
    """A private Ray; tried again where this machine was too busy for it. Raises `ClusterError`; whatever ends it, no process
    stays behind."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "address": "local"}
    options |= {"include_dashboard": False, "num_cpus": cpu_count(), "object_store_memory": OBJECT_STORE_BYTES}
    before = _of_ray()
    for attempt in range(1, TRIES + 1):
        began = time.monotonic()
        try:
            variables = worker_environment() | _short_folder() | _own_port()
            with _environment(variables), _told_of_waiting(), interrupting_exit(), terminable():
                return ray.init(**options)
        except Exception as error:
            with deaf(), uncollected():
                ray.shutdown()
                end_processes(_of_ray() - before)
            if attempt == TRIES or time.monotonic() - began < AT_ONCE_S:
                raise ClusterError(
                    f"no Ray can be started on this machine ({in_one_line(error)}); it needs a core, 1 GB of memory and "
                    f"space in {tempfile.gettempdir()}; danbooru-index doctor says what there is"
                ) from None
            tell(f"Ray has not started ({in_one_line(error, 160)}); {_load()}: tried again, {attempt + 1} of {TRIES}")
        except BaseException:  # stopped while it starts
            with deaf(), uncollected():
                ray.shutdown()
                end_processes(_of_ray() - before)
            raise
    raise AssertionError("every try returns or raises")


def _of_ray() -> set[int]:
    """The processes of Ray among this one's descendants: whatever else the caller has started is left alone."""
    return descendants(f"{os.sep}ray{os.sep}")


def _join(address: str) -> Any:
    """`ray.init` at an address; raise `ClusterError` where it fails."""
    import ray

    try:
        with interrupting_exit():
            return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ClusterError(f"Ray at {address}: {_why(error)}") from None
    finally:
        if not ray.is_initialized():
            with deaf(), uncollected():
                ray.shutdown()


def _why(error: BaseException) -> str:
    """What Ray says, whole, and what to do where that is known."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any("AuthenticationError" in f"{type(e).__name__} {e}" or "InvalidAuthToken" in str(e) for e in chain):
        return (
            "it asks for a token that this user has not shown: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file "
            "~/.ray/auth_token to the head's"
        )
    return f"{type(error).__name__}: {in_one_line(error)}"


@contextlib.contextmanager
def _told_of_waiting() -> Iterator[None]:
    """A line on stderr every 15 seconds while Ray starts, which takes 4 on an idle machine."""
    ended = threading.Event()
    started = time.monotonic()

    def wait() -> None:
        while not ended.wait(TOLD_EVERY_S):
            tell(f"waiting for Ray to start: {time.monotonic() - started:.0f} s; {_load()}")

    threading.Thread(target=wait, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _load() -> str:
    return f"{os.getloadavg()[0]:.0f} programs want this machine's {cpu_count()} cores"


def _short_folder() -> dict[str, str]:
    """Where Ray keeps its sockets, if the usual folder's name is too long for them. Raises `ClusterError`."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_FOLDER:
        return {}
    for folder in (*SHORT_FOLDERS, str(Path.home())):
        if len(os.fsencode(folder)) <= LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return {"RAY_TMPDIR": folder}
    raise ClusterError(
        f"{usual}: too long a name for Ray's sockets: set RAY_TMPDIR to a folder of at most {LONGEST_FOLDER} bytes"
    )


def _own_port() -> dict[str, str]:
    """A port that is free now for the control store. Where Ray has it choose one itself, it waits for the answer inside its
    C++ code with the interpreter's lock held: no thread runs meanwhile, and no signal is heard."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"RAY_GCS_SERVER_PORT": str(probe.getsockname()[1])}


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


def _spend_warning() -> None:
    """Have Ray say into a file what it says once a process, as an error on stderr, of every pool of Ray Data: that an actor
    may not restart, which means nothing here. Anything else that is said meanwhile goes to stderr after all.

    The actor that it is said of asks for a resource that no node has, and is taken back at once.
    """
    import ray

    if ray.util.client.ray.is_connected():
        return
    saved = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            never = ray.remote(num_cpus=0, resources={"nowhere": 1}, max_restarts=-1)(_Never)
            ray.kill(never.remote(ray.put(0)))
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        said.seek(0)
        for line in said:
            if not MEANINGLESS.search(line):
                os.write(2, line)


class _Never:
    """An actor that is never made."""

    def __init__(self, _: Any) -> None: ...
