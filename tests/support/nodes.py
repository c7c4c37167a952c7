"""A cluster of several nodes on one machine, in a process of its own (`ray.cluster_utils.Cluster`).

    with cluster(head={"num_cpus": 0}, nodes=[{"num_cpus": 2, "num_gpus": 1}]) as nodes:
        nodes.address, nodes.add(num_cpus=2), nodes.remove(0), nodes.terminate(1)

Each node is a raylet with its workers; GPUs are logical. The process reads orders, one JSON a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from processes import running, wait_for

OBJECT_STORE = 100 << 20
NAMESPACE = (
    ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
)


class Nodes:
    """The handle that a test holds: the cluster's address, and its nodes by number."""

    def __init__(self, process) -> None:
        self._process = process
        self.address = self._answer()["address"]

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError("the cluster's process ended: " + self._process.stderr.read()[-2000:])

    def _order(self, **order) -> dict:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def add(self, **resources) -> int:
        """Start a node; its number."""
        return self._order(do="add", resources=resources)["number"]

    def add_blind(
        self, hidden: dict[Path, Path], env: dict[str, str] | None = None, **resources
    ) -> int:
        """Start a node that sees other folders at some places: by a mount namespace of its own. It
        has its own environment too.
        """
        places = [str(word) for pair in hidden.items() for word in pair]
        return self._order(do="add", resources=resources, hidden=places, env=env or {})["number"]

    def remove(self, number: int) -> None:
        """kill -9 of a node's raylet and so of all its workers."""
        self._order(do="remove", number=number)

    def clear(self) -> None:
        """Remove what is left; the next node is number 0 again."""
        self._order(do="clear")

    def terminate(self, number: int) -> int:
        """SIGTERM to a node's raylet, as a cloud sends it before it takes the machine; its pid."""
        return self._order(do="terminate", number=number)["pid"]

    def list(self) -> list[dict]:
        """`ray.nodes()` as the control store has them."""
        return self._order(do="list")["nodes"]


@contextmanager
def cluster(
    head: dict | None = None, nodes: Sequence[dict] = (), env: dict | None = None
) -> Iterator[Nodes]:
    """A cluster; every process of it has ended at the end of the block."""
    given = json.dumps({"head": head or {"num_cpus": 0}, "nodes": list(nodes)})
    with tempfile.TemporaryDirectory(prefix="rn", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(Path(__file__)), given, folder]
        with running(command, env=env, stdin=True) as process:
            yield Nodes(process)


@contextmanager
def autoscaling_cluster(types: dict) -> Iterator[str]:
    """A head without CPUs and Ray's autoscaler (v2), which starts nodes of these types on demand;
    its address.

    As `ray.cluster_utils.AutoscalingCluster`, which would call `ray stop`: that ends other Rays.
    """
    from ray.autoscaler._private.fake_multi_node.node_provider import (
        FAKE_HEAD_NODE_ID,
        FakeMultiNodeProvider,
    )

    [port, dashboard, client] = free_ports(3)
    # "external": for a provider of its own kind Ray reads defaults that its wheel does not hold
    provider = {
        "type": "external",
        "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "gcs_address": f"127.0.0.1:{port}",
    }
    config = {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 1,
        "provider": provider,
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": types
        | {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    env = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with tempfile.TemporaryDirectory(prefix="ra", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0",
            f"--autoscaling-config={folder}/config.json", f"--port={port}",
            "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/t", "--disable-usage-stats",
            f"--object-store-memory={OBJECT_STORE}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
        ]  # fmt: skip
        with open(f"{folder}/log", "w") as log, running(command, env=env, stdout=log) as process:
            wait_for(lambda: process.poll() is not None or _listens(port), every=0.3)
            assert process.poll() is None, Path(f"{folder}/log").read_text()[-2000:]
            yield f"127.0.0.1:{port}"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def serve(given: dict, folder: str) -> None:
    """Start the cluster and follow orders until stdin ends."""
    from ray.cluster_utils import Cluster

    head = {"object_store_memory": OBJECT_STORE, "include_dashboard": False} | given["head"]
    made = Cluster(initialize_head=True, head_node_args={"temp_dir": folder, **head})
    known = []

    def add(resources: dict) -> int:
        known.append(made.add_node(**({"object_store_memory": OBJECT_STORE} | resources)))
        return len(known) - 1

    def add_blind(order: dict) -> int:
        before = len(made.global_state.node_table())
        script = 'while [ "$1" != -- ]; do mount --bind "$2" "$1"; shift 2; done; shift; exec "$@"'
        join = [sys.executable, __file__, "join", made.address, json.dumps(order["resources"])]
        apart = NAMESPACE if order["hidden"] else []
        command = [*apart, "sh", "-ec", script, "sh", *order["hidden"], "--", *join]
        known.append(
            subprocess.Popen(
                command, env=os.environ | order["env"], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        wait_for(lambda: len(made.global_state.node_table()) > before)
        return len(known) - 1

    def remove(number: int) -> None:
        node, known[number] = known[number], None
        if isinstance(node, subprocess.Popen):
            node.stdin.close()
            node.wait()
        elif node is not None:
            made.remove_node(node, allow_graceful=False)

    for resources in given["nodes"]:
        add(resources)
    print(json.dumps({"address": made.address}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict = {}
        if order["do"] == "add":
            blind = "hidden" in order
            answer = {"number": add_blind(order) if blind else add(order["resources"])}
        elif order["do"] == "remove":
            remove(order["number"])
        elif order["do"] == "clear":
            for number in range(len(known)):
                remove(number)
            known.clear()
        elif order["do"] == "terminate":
            raylet = known[order["number"]].all_processes["raylet"][0].process
            raylet.terminate()
            answer = {"pid": raylet.pid}
        else:
            table = made.global_state.node_table()
            answer = {
                "nodes": [
                    {"id": n["NodeID"], "alive": n["Alive"], "resources": n["Resources"]}
                    for n in table
                ]
            }
        print(json.dumps(answer), flush=True)
    os._exit(0)


def join(address: str, resources: dict) -> None:
    """Start one node more of the cluster at an address; end it when stdin ends."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    made.head_node = SimpleNamespace(gcs_address=address)
    made.redis_address = address
    node = made.add_node(wait=False, object_store_memory=OBJECT_STORE, **resources)
    sys.stdin.read()
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "join":
        join(sys.argv[2], json.loads(sys.argv[3]))
    serve(json.loads(sys.argv[1]), sys.argv[2])
