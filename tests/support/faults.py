"""What the chaos campaigns share: ownership of every process they start, small inputs, comparison
of whole indexes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from checkpoints import SAMPLE, Shape, make_checkpoint

from danbooru_index.failpoints import Failpoint
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.status import verify
from danbooru_index.ingest.prepare import prepare
from danbooru_index.prepare_config import PrepareConfig

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
CHAOS = ROOT / "tests" / "chaos"
LIGHT_SHAPE = Shape(layers=1, hidden=16, heads=2, intermediate=32)
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Outcome:
    """What a campaign found: counts by name, and every breach of the promise, in words."""

    counts: dict[str, int | float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, number: int | float = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def expect(self, true: object, problem: str) -> None:
        if not true:
            self.problems.append(problem)


def become_subreaper() -> None:
    """Orphans of every process started from here come to this process, not to init: so all of them
    can be ended.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore Ctrl-C, and so would ours


def descendants() -> list[psutil.Process]:
    """All living processes that descend from this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def end_descendants(keep: set[int] = frozenset()) -> int:
    """kill -9 of every descendant but those kept; returns how many there were."""
    ended = 0
    for _ in range(20):
        living = [p for p in descendants() if p.pid not in keep]
        if not living:
            break
        for process in living:
            kill(process.pid)
            ended += 1
        reap()
        time.sleep(0.05)
    reap()
    return ended


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; whether there was such a process."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def reap() -> None:
    """Take the exit codes of adopted orphans (those of `Popen` objects are left to these)."""
    own = {process.pid for process in _started}
    for child in psutil.Process().children():
        try:
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue


_started: list[subprocess.Popen] = []


def start(command: list[str], env: dict | None = None, **options) -> subprocess.Popen:
    """A process in a session of its own, its output kept in files."""
    out, err = (Path(tempfile.mkstemp(prefix=name)[1]) for name in ("out-", "err-"))
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | (env or {}),
            cwd=ROOT,
            start_new_session=True,
            **options,
        )
    process.out, process.err = out, err
    _started.append(process)
    return process


def said(process: subprocess.Popen) -> str:
    """The lines of a process's stderr that are not Ray's own logs."""
    lines = process.err.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith("[20"))


def finish(process: subprocess.Popen, timeout: float = 120) -> int:
    """Wait for the end; a process that takes longer is killed, and -9999 says so."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -9999


@dataclass
class Workbench:
    """A folder with a small input, a light checkpoint, and an index built from them without
    disturbance.
    """

    folder: Path
    records: int = 0

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def index(self, name: str) -> Path:
        return self.folder / name


def make_workbench(folder: Path, *, shard_rows: int = 12, copies: int = 1) -> Workbench:
    """`copies` times the sample's 468 records, in shards of `shard_rows`, and a checkpoint
    16 wide.
    """
    lines = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    many = [
        r | {"id": f"{n}-{r['id']}", "text": f"{r['text']} {n}"}
        for n in range(copies)
        for r in lines
    ]
    (folder / "tags.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in many), encoding="utf-8"
    )
    prepare(
        PrepareConfig((str(folder / "tags.jsonl"),), str(folder / "shards"), shard_rows=shard_rows)
    )
    make_checkpoint(folder / "model", LIGHT_SHAPE)
    return Workbench(folder, len(many))


def light_build(bench: Workbench, index: Path, *options: str) -> list[str]:
    """The command of a light build."""
    return [sys.executable, SUPPORT / "light.py", bench.shards, index, bench.model, *options]


def contents(index: Path) -> dict[str, list]:
    """All three tables of the published generation, as lists."""
    import lancedb

    path = IndexRoot(index).current().path
    database = lancedb.connect(str(path), storage_options=path.lance_options())
    return {
        name: database.open_table(name).to_arrow().to_pylist()
        for name in ("dense", "sparse", "colbert")
    }


def compare(index: Path, expected: dict[str, list]) -> list[str]:
    """What differs from an undisturbed index: lost, doubled or mixed rows, other vectors; and what
    `verify` says.
    """
    try:
        found = contents(index)
    except Exception as error:
        return [f"{index}: cannot be read: {error}"]
    problems = []
    for name, rows in expected.items():
        ids = [row["id"] for row in rows]
        seen = [row["id"] for row in found[name]]
        lost, doubled = set(ids) - set(seen), len(seen) - len(set(seen))
        if lost or doubled:
            problems.append(f"{name}: {len(lost)} lost, {doubled} doubled")
        elif seen != ids:
            problems.append(f"{name}: another order")
        elif repr(found[name]) != repr(rows):
            problems.append(f"{name}: other values")
    return problems + verify(str(index)).problems


@contextmanager
def head_node(
    cpus: int = 2, *, dashboard: bool = False, node: str = "127.0.0.1", env: dict | None = None
):
    """A Ray head node of our own, on loopback and without authentication unless told otherwise;
    yields its address.
    """
    for _ in range(3):
        process, base, ports = _start_head(cpus, dashboard, node, env)
        if _answers(process, node, ports, dashboard):
            break
        said_last = said(process)[-500:]
        _end_head(process, base)  # a port may have been taken meanwhile
    else:
        raise RuntimeError(f"the head node did not start: {said_last}")
    os.environ["RAY_DASHBOARD"] = f"http://127.0.0.1:{ports[4]}"
    try:
        yield f"{node}:{ports[0]}"
    finally:
        _end_head(process, base)


def _start_head(cpus, dashboard, node, env):
    base = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))
    ports = []
    for _ in range(5):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    command = [
        Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--node-ip-address={node}",
        f"--port={ports[0]}", f"--temp-dir={base}/t", f"--num-cpus={cpus}", f"--object-store-memory={200 << 20}",
        f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports[4]}", f"--ray-client-server-port={ports[1]}", f"--metrics-export-port={ports[2]}",
        "--dashboard-agent-listen-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    if node != "127.0.0.1":
        env = (env or {}) | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    return start(command, env=env), base, ports


def _answers(process, node, ports, dashboard) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection((node, ports[0]), timeout=1).close()
            if dashboard:
                urllib.request.urlopen(f"http://127.0.0.1:{ports[4]}/api/jobs/", timeout=2).close()
            if "Ray runtime started" in process.out.read_text():
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def _end_head(process, base) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]:
            kill(member.pid)
    process.wait()
    shutil.rmtree(base, ignore_errors=True)


def prepare_environment() -> None:
    """A temporary HOME, no authentication unless a campaign sets it, loopback only, everything
    short-lived.
    """
    home = tempfile.mkdtemp(prefix="home-")
    os.environ |= {
        "HOME": home,
        "TMPDIR": home,
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="rt", dir="/tmp"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "LANCE_LOG": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{ROOT}:{SUPPORT}:{CHAOS}",
        # A dead control store or raylet is noticed in seconds.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "500",
    }
    os.environ.pop("RAY_ADDRESS", None)
    tempfile.tempdir = home


def chance_of(seed: int, *names: object) -> random.Random:
    """A generator for one case: the same seed and names, the same case."""
    return random.Random(f"{seed}/{'/'.join(map(str, names))}")


def parse_failpoint(word: str) -> Failpoint:
    """`NAME:ACTION:TOKEN:SKIP` of a command line."""
    name, action, token, skip = word.split(":")
    return Failpoint(name, action, token=token, skip=int(skip or 0))
