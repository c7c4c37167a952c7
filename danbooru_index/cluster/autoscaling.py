"""A cluster whose nodes come when they are asked for: is there an autoscaler, what can it bring?

Ray's autoscaler v2 only, which `ray up` and KubeRay use: an older one says nothing of what it can
bring.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from danbooru_index.durations import said_duration
from danbooru_index.errors import ClusterError

log = logging.getLogger(__name__)

TELL_EVERY_S = 60.0
FIRST_REPORT_S = 30.0


def autoscaler_state() -> Any:
    """What the autoscaler last reported to the connected cluster's control store: an
    `AutoscalingState` message, of version 0 where there is no autoscaler.

    Ray's own `ray.autoscaler.v2.sdk.get_cluster_status` leaves out the requests that no node type
    can meet, which are what is asked here; it makes the same call.
    """
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(_control_store().get_cluster_status(timeout_s=10))
    return reply.autoscaling_state


def _control_store() -> Any:
    import ray._raylet

    raylet: Any = ray._raylet  # has no types
    return raylet.GcsClient(address=ray.get_runtime_context().gcs_address)


def autoscaled() -> bool:
    """Whether the connected cluster has an autoscaler. One that was to start with the head may
    still be starting: its first report is waited for.
    """
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    began = time.monotonic()
    while int(autoscaler_state().autoscaler_state_version) == 0:
        expected = is_autoscaler_v2(fetch_from_server=True, gcs_client=_control_store())
        if not expected or time.monotonic() - began > FIRST_REPORT_S:
            return False
        time.sleep(1.0)
    return True


def await_first_node(limit_s: float, num_cpus: float, num_gpus: float) -> bool:
    """Ask for a node with so much, and wait until there is one; False: no autoscaler, or none of
    its node types has it. Raises `ClusterError` after `limit_s` seconds.

    What asks is a task that waits for its node: unlike `request_resources`, it ends with this job.
    """
    if not autoscaled():
        return False
    import ray

    what = "GPU" if num_gpus else "CPU"
    first = ray.remote(max_calls=1, num_gpus=num_gpus, num_cpus=num_cpus)(_nothing).remote()
    began = told = time.monotonic()
    log.info(f"asking the cluster's autoscaler for a node with a {what}")
    came = False
    try:
        while not (came := bool(ray.wait([first], timeout=1.0)[0])):
            now = time.monotonic()
            if _refused(what):
                return False
            if now - began > limit_s:
                raise ClusterError(
                    f"no node with a {what} came within {said_duration(limit_s)}"
                    " (--wait-for-nodes); ray status says why"
                )
            if now - told >= TELL_EVERY_S:
                told = now
                log.info(
                    f"waiting for the first node with a {what}: {said_duration(now - began)} of"
                    f" {said_duration(limit_s)}"
                )
    finally:
        if not came:
            # Never a task that has ended: where its reply comes after its cancellation, Ray 2.60
            # ends this process (task_manager.cc, "Tried to complete task that was not pending").
            ray.cancel(first)
    return True


def _nothing() -> None: ...


def _refused(what: str) -> bool:
    """Whether the autoscaler has found that no node type of its own has it."""
    return any(
        request.resources_bundle.get(what, 0)
        for request in autoscaler_state().infeasible_resource_requests
    )
