"""A Ray of this process's own: on loopback, behind a token, retried on a busy machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danbooru_index.cluster.resources import worker_environment
from danbooru_index.errors import ClusterError, in_one_line
from danbooru_index.machine import cpu_count, uncollected
from danbooru_index.signals import (
    descendants,
    end_processes,
    interrupting_exit,
    signals_ignored,
    terminable,
)

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 << 20
TRIES = 3  # to start a private Ray: on a busy machine one may take longer than Ray waits
START_S = 60
AT_ONCE_S = 5.0  # what fails sooner was not waited for in vain, and would fail again
TOLD_EVERY_S = 15.0
LONGEST_FOLDER = 39  # bytes: with Ray's own names after it, a socket's path has 107 at most
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare_private_ray() -> None:
    """Environment for a Ray of this process's own: on loopback only, behind a token that nobody
    else has.

    Ray reads the first variables and those of the token when it is imported; without the first its
    servers listen on every address, and under `uv run` it would upload the current folder to
    itself. A job's own settings must not reach it. When its control store dies, the driver gives up
    in seconds instead of a minute. Raises `ClusterError` where Ray has been imported already,
    without a word on tokens.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
    # tries, of 15 s each
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(START_S // 15))
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "5")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_S))
    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    if "RAY_AUTH_MODE" not in os.environ:
        if "ray" in sys.modules:
            raise ClusterError(
                "ray was imported before danbooru_index could give a Ray of its own a token: import"
                " ray later, or call ray.init() yourself, or set RAY_AUTH_MODE (token or disabled)"
                " before importing it"
            )
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def start_private_ray() -> Any:
    """A private Ray; tried again where this machine was too busy for it. Raises `ClusterError`;
    whatever ends it, no process stays behind.
    """
    import ray

    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "address": "local",
    }
    options |= {
        "include_dashboard": False,
        "num_cpus": cpu_count(),
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    before = _of_ray()
    for attempt in range(1, TRIES + 1):
        began = time.monotonic()
        try:
            variables = worker_environment() | _short_folder() | _own_port()
            with contextlib.ExitStack() as unless_started:
                unless_started.callback(_end_ray, before)  # after a failure, and after a stop
                with _environment(variables), _told_of_waiting(), interrupting_exit(), terminable():
                    context = ray.init(**options)
                unless_started.pop_all()
                return context
        except Exception as error:
            # Ray has a class for each way in which it does not start, and Python's own
            if attempt == TRIES or time.monotonic() - began < AT_ONCE_S:
                raise ClusterError(
                    f"no Ray can be started on this machine ({in_one_line(error)}); it needs a"
                    f" core, 1 GB of memory and space in {tempfile.gettempdir()}; danbooru-index"
                    " doctor says what there is"
                ) from None
            log.warning(
                f"Ray has not started ({in_one_line(error, 160)}); {_machine_load()}: tried again,"
                f" {attempt + 1} of {TRIES}"
            )
    raise AssertionError("every try returns or raises")


def _end_ray(before: set[int]) -> None:
    """Ends the Ray that is starting, with each of its processes that was not there before."""
    import ray

    with signals_ignored(), uncollected():
        ray.shutdown()
        end_processes(_of_ray() - before)


def _of_ray() -> set[int]:
    """The processes of Ray among this process's descendants, and no others."""
    return descendants(f"{os.sep}ray{os.sep}")


@contextlib.contextmanager
def _told_of_waiting() -> Iterator[None]:
    """A line on stderr every 15 seconds while Ray starts, which takes 4 on an idle machine."""
    ended = threading.Event()
    started = time.monotonic()

    def wait() -> None:
        while not ended.wait(TOLD_EVERY_S):
            log.info(
                f"waiting for Ray to start: {time.monotonic() - started:.0f} s; {_machine_load()}"
            )

    threading.Thread(target=wait, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _machine_load() -> str:
    return f"{os.getloadavg()[0]:.0f} programs want this machine's {cpu_count()} cores"


def _short_folder() -> dict[str, str]:
    """Where Ray keeps its sockets, if the usual path is too long. Raises `ClusterError`."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_FOLDER:
        return {}
    for folder in (*SHORT_FOLDERS, str(Path.home())):
        if len(os.fsencode(folder)) <= LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return {"RAY_TMPDIR": folder}
    raise ClusterError(
        f"{usual}: too long a name for Ray's sockets: set RAY_TMPDIR to a folder of at most"
        f" {LONGEST_FOLDER} bytes"
    )


def _own_port() -> dict[str, str]:
    """A port that is free now for the control store. Where Ray has it choose one itself, it waits
    for the answer inside its C++ code with the interpreter's lock held: no thread runs meanwhile,
    and no signal is heard.
    """
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
