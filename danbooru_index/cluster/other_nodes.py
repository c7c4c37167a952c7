"""A question to every other node of the cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from danbooru_index.cluster.ray_errors import worker_problem
from danbooru_index.cluster.resources import PATIENCE_S, worker_environment
from danbooru_index.errors import ClusterError

log = logging.getLogger(__name__)


def on_other_nodes(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Call a function once on every node that can work, but for this process's own; what it
    returned, by node, as `host (first of its id)`. A node that goes meanwhile has no answer.

    Raises `ClusterError` where a node cannot run it.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = _others_at_work()
    # no share of a CPU: other jobs may hold them all
    remote = ray.remote(num_cpus=0, runtime_env={"env_vars": worker_environment()})(function)
    pending = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            *arguments
        ): node
        for node in names
    }
    answers: dict[str, Any] = {}
    while pending:
        ready, _ = ray.wait(list(pending), timeout=PATIENCE_S)
        if not ready:
            log.info(f"waiting for {len(pending)} of {len(names)} nodes to look at their files")
        for reference in ready:
            node = pending.pop(reference)
            try:
                answers[names[node]] = ray.get(reference)
            except RayError as error:
                if node in _others_at_work():
                    raise ClusterError(f"node {names[node]}: {worker_problem(error)}") from None
    return answers


def _others_at_work() -> dict[str, str]:
    """The names of the other nodes that can work, by id."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] != here
        and (node["Resources"].get("CPU", 0) or node["Resources"].get("GPU", 0))
    }
