"""A head node with a job server, on loopback, with a token; and jobs submitted to it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodes import free_ports
from processes import ROOT, running, wait_for

BIN = Path(sys.executable).parent
RAY = str(BIN / "ray")


@dataclass
class Head:
    """A head node on loopback with its job server, and what a client needs to talk to it."""

    address: str
    dashboard: str
    metrics: str
    env: dict
    folder: Path


@contextmanager
def head_node_with_jobs():
    """`ray start --head` with its job server and a token, in a folder and a HOME of its own."""
    base = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))
    (base / "h").mkdir()
    gcs, dashboard, client, metrics = free_ports(4)
    env = {
        "HOME": str(base / "h"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={base}/t",
        "--num-cpus=2", f"--object-store-memory={200 << 20}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        "--dashboard-agent-listen-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    with open(base / "head.log", "w") as log, running(command, env=env, stdout=log) as process:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(
            lambda: (
                process.poll() is not None or answers(f"{url}/api/jobs/", env["RAY_AUTH_TOKEN"])
            ),
            timeout=90,
            every=0.3,
        )
        assert process.poll() is None, (base / "head.log").read_text()[-2000:]
        yield Head(f"127.0.0.1:{gcs}", url, f"http://127.0.0.1:{metrics}/metrics", env, base)
    shutil.rmtree(base, ignore_errors=True)


def answers(url, token):
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read()
    except OSError:
        return None


def submit_command(head, *arguments, folder=ROOT, options=()):
    """`ray job submit` of a script and its arguments, from a folder."""
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", str(folder)]
    command += ["--log-color", "false"]
    return [*command, *map(str, options), "--", "python", *map(str, arguments)]


def submit(head, *arguments, folder=ROOT, options=()):
    """Submit a job and wait for its end."""
    return subprocess.run(
        submit_command(head, *arguments, folder=folder, options=options),
        capture_output=True,
        text=True,
        env=os.environ | head.env,
        timeout=240,
        check=False,
    )
