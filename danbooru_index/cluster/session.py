"""A Ray of this process's own, or a cluster that is joined: started, and ended."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danbooru_index.cluster.private_ray import prepare_private_ray, start_private_ray
from danbooru_index.cluster.security import check_address, protect_token, refuse_open_head
from danbooru_index.cluster.upload import refuse_large_upload
from danbooru_index.errors import ClusterError, in_one_line
from danbooru_index.machine import uncollected
from danbooru_index.signals import interrupting_exit, signals_ignored, sigterm_restored, terminable

MEANINGLESS = re.compile(
    rb"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store"
)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[bool]:
    """Join the cluster at `address` (or `RAY_ADDRESS`), else start a private Ray on this machine;
    end it afterwards.

    Yields whether its workers have the `worker_environment` from their start: those of a private
    Ray. A Ray that this process has already started is used and left running. SIGTERM becomes
    KeyboardInterrupt inside. Raises `ClusterError` when the cluster cannot be reached, or no Ray be
    started.
    """
    named = cluster_address(address)
    private = named is None
    if not ray_runs():
        if private:
            prepare_private_ray()
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
    with sigterm_restored(), _errors_unprinted():
        context = start_private_ray() if private else _join(str(named))
        try:
            with interrupting_exit(), terminable():
                # after `ray.init`, which installs its own handlers
                if not private:
                    refuse_open_head(ray.get_runtime_context().gcs_address, context.dashboard_url)
                spend_warning()
                yield private
        except KeyboardInterrupt:
            # Said before Ray ends: Ray may end this process with its raylet, and nothing after it.
            log.info(
                "danbooru-index: stopping; what is done is kept: run the same command to go on"
            )
            raise
        finally:
            with signals_ignored(), uncollected(), contextlib.suppress(Exception):
                # whatever ended it, this ends
                ray.shutdown()


def cluster_address(address: str | None) -> str | None:
    """The cluster to join, by option or `RAY_ADDRESS`; None: this process starts a Ray."""
    named = address or os.environ.get("RAY_ADDRESS")
    return named if named and named != "local" else None


def ray_runs() -> bool:
    """Whether this process has a Ray; does not import ray, which reads its settings then."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _prepare_to_join(address: str) -> None:
    """Checks before ray is imported; raise `ClusterError` for what would fail or hang."""
    protect_token()
    check_address(address)
    refuse_large_upload(Path.cwd())
    # For a control store that falls silent now, and for `auto`, which Ray resolves: two tries of 16
    # s instead of 20 of 41.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "5")


def _join(address: str) -> Any:
    """`ray.init` at an address; raise `ClusterError` where it fails."""
    import ray

    try:
        with interrupting_exit():
            return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        # Ray has a class for each way in which it does not connect, and Python's own
        raise ClusterError(f"Ray at {address}: {_why(error)}") from None
    finally:
        if not ray.is_initialized():
            with signals_ignored(), uncollected():
                ray.shutdown()


def _why(error: BaseException) -> str:
    """What Ray says, whole, and what to do where that is known."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(
        "AuthenticationError" in f"{type(e).__name__} {e}" or "InvalidAuthToken" in str(e)
        for e in chain
    ):
        return (
            "it asks for a token that this user has not shown: set RAY_AUTH_MODE=token, and"
            " RAY_AUTH_TOKEN or the file ~/.ray/auth_token to the head's"
        )
    return f"{type(error).__name__}: {in_one_line(error)}"


def spend_warning() -> None:
    """Have Ray say into a file what it says once a process, as an error on stderr, of every pool of
    Ray Data: that an actor may not restart, which means nothing here. Anything else that is said
    meanwhile goes to stderr after all.

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


@contextlib.contextmanager
def _errors_unprinted() -> Iterator[None]:
    """Ray's own lines about lost actors and retries do not get among a command's answers: Ray
    prints them on stdout, whatever `log_to_driver` says, the last of them as it ends. They stay in
    Ray's log files. The switch is the one that Ray's debugger uses.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = True


class _Never:
    """An actor that is never made."""

    def __init__(self, _: Any) -> None: ...
