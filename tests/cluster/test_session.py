"""Ray started, joined and ended: what is at an address, a busy machine, a Ray that hangs, what
would be uploaded.
"""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from processes import CLI, ROOT, one_line, run_cli, running, wait_for

from danbooru_index.cluster import private_ray, security, upload
from danbooru_index.cluster.private_ray import _of_ray, _short_folder
from danbooru_index.cluster.security import Answer, ask_control_store, check_address
from danbooru_index.cluster.session import _why
from danbooru_index.cluster.upload import measure_upload, refuse_large_upload, under_uv_run
from danbooru_index.errors import ClusterError, StorageError, in_one_line
from danbooru_index.signals import descendants


@contextlib.contextmanager
def http_server(pages):
    """A plain HTTP server on loopback: these pages, 404 for all others."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent():
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield listening.getsockname()[1]


def test_what_is_no_control_store_is_named_in_seconds(silent, monkeypatch):
    with (
        http_server({}) as port,
        pytest.raises(ClusterError, match=r"what answers there is not the control store of a Ray"),
    ):
        check_address(f"127.0.0.1:{port}")
    with pytest.raises(
        ClusterError, match=r"nobody answers there .Connection refused.; check --address"
    ):
        check_address(f"127.0.0.1:{port}")
    monkeypatch.setattr(security, "ANSWER_S", 0.5)
    with pytest.raises(ClusterError, match="no answer in 0 s"):
        check_address(f"ray://127.0.0.1:{silent}")
    check_address("auto")


def test_the_port_of_a_dashboard_is_recognised_and_the_control_store_named():
    pages = {"/api/authentication_mode": b'{"authentication_mode": "disabled"}'}
    with http_server(pages) as port:
        with pytest.raises(
            ClusterError,
            match=r"the port of its dashboard and job server; pass .*usually 127.0.0.1:6379",
        ):
            check_address(f"127.0.0.1:{port}")
        pages["/nodes?view=summary"] = (
            b'{"cmdline": ["raylet", "--gcs-address=10.0.0.7:6380", "x"]}'
        )
        with pytest.raises(
            ClusterError,
            match=r"pass the control store's, 10.0.0.7:6380, or submit the job: ray job submit",
        ):
            check_address(f"127.0.0.1:{port}")
        with pytest.raises(
            ClusterError,
            match=r"http://127.*: the address of a Ray dashboard .*10.0.0.7:6380; to submit",
        ):
            check_address(f"http://127.0.0.1:{port}")


def test_an_http_address_in_the_environment_is_named(tmp_path, sample_shards, checkpoint):
    options = ["--index", tmp_path / "index", "--model", checkpoint, "--device", "cpu"]
    line = one_line(
        run_cli("build", sample_shards, *options, env={"RAY_ADDRESS": "http://127.0.0.1:9"}), 1
    )
    assert "http://127.0.0.1:9: the address of a Ray dashboard" in line
    assert "RAY_ADDRESS" in line


def test_a_dead_proxy_does_not_stand_between(monkeypatch, silent):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{silent}")
    monkeypatch.setattr(security, "ANSWER_S", 3.0)
    with http_server({}) as port:
        assert ask_control_store("127.0.0.1", port) is Answer.OTHER


def test_a_control_store_behind_tls_is_left_to_ray(monkeypatch, silent):
    """Ray has the certificates; whether anybody listens can be said."""
    monkeypatch.setenv("RAY_USE_TLS", "1")
    check_address(f"127.0.0.1:{silent}")
    with http_server({}) as port:
        pass
    with pytest.raises(ClusterError, match="nobody answers there"):
        check_address(f"127.0.0.1:{port}")
    check_address("127.0.0.1:²")


def test_a_long_temporary_folder_gets_a_short_one(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 38)
    assert _short_folder() == {}
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 120)
    assert _short_folder() == {"RAY_TMPDIR": "/tmp"}
    monkeypatch.setattr(private_ray, "SHORT_FOLDERS", ("/nowhere",))
    monkeypatch.setenv("HOME", "/" + "h" * 50)
    with pytest.raises(ClusterError, match="too long a name for Ray's sockets: set RAY_TMPDIR"):
        _short_folder()


def test_a_remedy_is_not_cut_in_its_middle():
    long = ValueError("It failed. " + "Do this first, then that. " * 30)
    assert in_one_line(long).endswith("then that.")
    assert len(in_one_line(long)) <= 601
    refused = ConnectionError("Failed to connect")
    refused.__cause__ = RuntimeError(
        "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: missing"
    )
    assert "RAY_AUTH_TOKEN" in _why(refused)


FOLDER = {
    "code/a.py": 10,
    "code/__pycache__/a.pyc": 1000,
    ".git/objects/x": 5000,
    ".venv/lib/y": 9000,
    "data/big.bin": 40_000,
    "data/keep/small.txt": 7,
    "my-index/dense.lance": 70_000,
    "code/data/inner.txt": 3,
    "notes.log": 11,
    "README.md": 13,
}


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ({}, 10 + 40_000 + 7 + 70_000 + 3 + 11 + 13),
        ({".gitignore": "*.log\n/data/\n"}, 10 + 70_000 + 3 + 13),
        ({".gitignore": "*.log\n", ".rayignore": "data\nmy-index\n"}, 10 + 13),
        ({".rayignore": "/*\n!/.\n!/code\n!/README.md\n"}, 10 + 3 + 13),
        (
            {"code/.gitignore": "data\n", ".rayignore": "!notes.log\n"},
            10 + 40_000 + 7 + 70_000 + 11 + 13,
        ),
    ],
    ids=["all", "gitignore", "both", "nothing but", "in a folder"],
)
def test_what_would_be_uploaded_is_what_ray_packs(ignored, expected, tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    for name, size in FOLDER.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(os.urandom(size))
    for name, lines in ignored.items():
        (tmp_path / "f" / name).write_text(lines)
    found = measure_upload(tmp_path / "f")
    assert found.bytes - sum((tmp_path / "f" / name).stat().st_size for name in ignored) in (
        expected,
        expected - sum(len(lines) for name, lines in ignored.items() if "/*" in lines),
    )
    package = tmp_path / "p.zip"
    excludes = list(get_runtime_env_default_excludes())
    create_package(str(tmp_path / "f"), package, include_gitignore=True, excludes=excludes)
    import zipfile

    entries = [entry for entry in zipfile.ZipFile(package).infolist() if not entry.is_dir()]
    assert (found.files, found.bytes) == (len(entries), sum(entry.file_size for entry in entries))


def test_a_folder_of_links_and_odd_patterns_is_measured_once(tmp_path):
    folder = tmp_path / "f"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x").write_bytes(b"12345")
    for name in ("loop", "again"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "self").symlink_to(folder / "self")
    assert measure_upload(folder).bytes == 5
    (folder / ".rayignore").write_text("!\n")
    with pytest.raises(StorageError, match=r"\.rayignore: a line that is no pattern"):
        measure_upload(folder)


def test_what_the_caller_has_started_is_not_rays():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as own:
        assert own.pid in descendants()
        assert own.pid not in _of_ray()
        own.kill()


def test_this_project_uploads_its_code_alone():
    found = measure_upload(ROOT)
    assert set(found.sizes) == {
        "danbooru_index",
        "jobs",
        "constraints.txt",
        "pyproject.toml",
        "README.md",
    }
    assert found.bytes < upload.LARGEST_SUBMISSION / 4


def test_a_folder_that_is_too_large_is_named_before_it_is_packed(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    with (tmp_path / "index" / "big").open("wb") as file:
        file.truncate(600 << 20)
    assert not under_uv_run()
    refuse_large_upload(tmp_path)
    monkeypatch.setattr(upload, "under_uv_run", lambda: True)
    with pytest.raises(
        ClusterError, match=r"629 MB of at most 537 \(index 629 MB\): name them in .rayignore"
    ):
        refuse_large_upload(tmp_path)
    monkeypatch.setattr(upload, "MOST_FILES", 0)
    with pytest.raises(StorageError, match="more than 0 files to upload"):
        measure_upload(tmp_path)


def under_uv(command, cwd):
    """A command whose parent looks like `uv run` to Ray: by its first two words."""
    (cwd / "run").write_text('"$@"\n')
    return subprocess.Popen(
        ["uv", "run", *map(str, command)],
        executable="/bin/bash",
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_build_beside_600_mb_under_uv_run_uploads_nothing(tmp_path, sample_shards, checkpoint):
    """A private Ray takes no working directory; Ray's hook would have packed it:
    "RuntimeEnvSetupError".
    """
    (tmp_path / "my-index").mkdir()
    with (tmp_path / "my-index" / "big").open("wb") as file:
        file.truncate(600 << 20)
    options = ["--index", "index", "--model", checkpoint, "--device", "cpu", "--json"]
    with under_uv([*CLI, "build", sample_shards, *options], tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["records"] == 468
    assert "core_worker.cc" not in err


def family(process):
    return {p.pid for p in psutil.Process(process.pid).children(recursive=True)}


def find(process, word):
    """The child of a process whose program has this name, once it is there."""

    def look():
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if word in Path([*child.cmdline(), ""][0]).name:
                        return child
        return None

    return wait_for(look, timeout=60, every=0.005)


def all_gone(pids):
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


def build_command(shards, index, model):
    return [
        *CLI,
        "build",
        str(shards),
        "--index",
        str(index),
        "--model",
        str(model),
        "--device",
        "cpu",
    ]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_does_not_start_in_time_is_tried_again(tmp_path, sample_shards, checkpoint):
    """A machine so busy that the control store does not run while Ray waits for it; in a long
    TMPDIR.
    """
    long = tmp_path / ("x" * 120)
    long.mkdir()
    env = {
        "RAY_gcs_server_port_wait_time_s": "1",
        "RAY_py_gcs_connect_timeout_s": "1",
        "TMPDIR": str(long),
    }
    with running(build_command(sample_shards, tmp_path / "index", checkpoint), env=env) as process:
        first = find(process, "gcs_server")
        first.suspend()
        out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert "468 in each of the three tables" in out
    assert "Ray has not started" in err
    assert "tried again, 2 of 3" in err
    assert all_gone([first.pid])


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting", "building", "ending"])
def test_sigterm_is_heard_while_ray_hangs(when, tmp_path, sample_shards, checkpoint):
    """Its control store does not answer, for ever: out within 5 s, by one line, and nothing stays
    behind.
    """
    index = tmp_path / "index"
    with running(build_command(sample_shards, index, checkpoint)) as process:
        store = find(process, "gcs_server")
        raylet = None if when == "starting" else find(process, "raylet")
        if when == "ending":
            wait_for((index / "CURRENT.json").exists, timeout=150)
        if raylet is not None:
            raylet.suspend()
        store.suspend()
        time.sleep(0 if when == "ending" else 4)
        assert process.poll() is None
        started = time.monotonic()
        children = family(process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        took = time.monotonic() - started
    assert took < 5 + 2, "two seconds for a busy machine"
    if when == "ending" and process.returncode == 0:  # Ray had ended before
        return
    assert process.returncode == 1
    assert err.strip().splitlines()[-1].startswith("danbooru-index: ")
    assert "run the same command" in err
    wait_for(lambda: all_gone(children), timeout=20)


HANGING = """
import ctypes
from danbooru_index.signals import bounded_stops, terminable
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with bounded_stops("last words", grace_s=0.5), terminable():
    library.pthread_mutex_lock(mutex)
    while True:
        try:
            print("ready", flush=True)
            library.pthread_mutex_lock(mutex)  # never returns, whatever the signal
        except KeyboardInterrupt:  # it came a moment before
            pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the mutex is one of Linux's")
def test_a_wait_inside_a_library_ends_too():
    with running([sys.executable, "-c", HANGING]) as process:
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert 0.5 <= time.monotonic() - started < 5
    assert err == "last words\n"


IN_TIME = """
import os, signal, time
from danbooru_index.signals import bounded_stops
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script runs behind it
try:
    with bounded_stops("last words", grace_s=2.0):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(3)
    print("left alone")
"""


def test_a_block_that_ends_in_time_is_left_alone():
    """In a process of its own, since one that is too slow would end the tests with it."""
    done = subprocess.run(
        [sys.executable, "-c", IN_TIME], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left alone\n", "")


ENDING = """
import os, signal
from danbooru_index.cluster.session import ray_session
from danbooru_index.signals import terminable
with terminable(), ray_session(None):
    import ray._private.worker as worker
    end_processes = worker._global_node.kill_all_processes
    def stopped_meanwhile(**options):  # the driver has ended; Ray's other processes have not
        os.kill(os.getpid(), signal.SIGTERM)
        end_processes(**options)
    worker._global_node.kill_all_processes = stopped_meanwhile
print("left alone")
"""


def test_a_stop_while_ray_ends_ends_nothing_else():
    """Ray's native code gives SIGTERM its default action then: the process would end unheard."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left alone\n", "")
