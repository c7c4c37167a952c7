"""Jobs by `ray job submit`: what is uploaded, what they say, how they end, and how they go on."""

import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import compare
from head import BIN, RAY, answers, submit, submit_command
from node_jobs import LIGHT
from processes import ROOT, running, wait_for

from danbooru_index.index.catalog import IndexRoot

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# the light encoder's module, which is not uploaded
LIGHTS = ["--runtime-env-json", json.dumps({"env_vars": {"PYTHONPATH": str(LIGHT.parent)}})]
JUNK = (".venv/lib", ".git/objects", ".demo/index", "my-index/generations", "shards")


def info(head, job):
    """What the job server says of a job."""
    return json.loads(answers(f"{head.dashboard}/api/jobs/{job}", head.env["RAY_AUTH_TOKEN"]))


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_submitted_job_builds_logs_and_ends_with_its_exit_code(
    head, sample_shards, checkpoint, tmp_path
):
    """From a clone with 600 MB in `my-index/`, which a job server would refuse (413): the code
    alone is uploaded. The job has the id and the notes that it was given.
    """
    clone = clone_of_project(tmp_path / "clone")
    for name in JUNK:
        (clone / name).mkdir(parents=True)
        (clone / name / "junk").write_bytes(b"junk")
    with (clone / "my-index" / "big").open("wb") as file:
        file.truncate(600 << 20)
    index = tmp_path / "index"
    words = ["jobs/build.py", sample_shards, "--index", index, "--model", checkpoint]
    given = ["--submission-id", "nightly-1", "--metadata-json", json.dumps({"index": str(index)})]
    done = submit(head, *words, "--device", "cpu", folder=clone, options=given)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "468 in each of the three tables" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    said = info(head, "nightly-1")
    assert (said["status"], said["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert said["metadata"] == {"index": str(index)}
    assert IndexRoot(index).current().manifest.seal.records == 468
    assert head.env["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
    [uploaded] = head.folder.glob("t/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    sent = files_in(uploaded)
    assert {path.relative_to(uploaded).parts[0] for path in sent} <= {
        "danbooru_index", "jobs", "constraints.txt", "pyproject.toml", "README.md", ".rayignore"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in sent) < 25 << 20


@pytest.mark.long
def test_exit_codes_are_in_the_status_of_a_job(head, checkpoint, sample_shards, tmp_path):
    """1: no such model. 3: a record is left out; 0 where that is accepted."""
    shards = tmp_path / "some.parquet"
    rows = [{"id": str(n), "text": f"text {n}" if n else ""} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), shards)
    words = ["jobs/build.py", shards, "--index", tmp_path / "i", "--device", "cpu"]
    gone = submit(
        head, *words, "--model", tmp_path / "gone", options=["--submission-id", "no-model"]
    )
    assert gone.returncode == 1
    assert "no such folder" in gone.stdout
    assert "Traceback" not in gone.stdout
    assert info(head, "no-model")["driver_exit_code"] == 1
    left = submit(
        head, *words, "--model", checkpoint, "--max-rejects", "0",
        options=["--submission-id", "left-out"],
    )  # fmt: skip
    assert left.returncode == 1, left.stdout[-3000:]
    said = info(head, "left-out")
    assert (said["status"], said["driver_exit_code"]) == ("FAILED", 3)
    assert "exit code 3" in said["message"]
    words[3] = tmp_path / "other"
    taken = submit(
        head, *words, "--model", checkpoint, "--max-rejects", "0", "--accept-left-out",
        options=["--submission-id", "accepted"],
    )  # fmt: skip
    assert taken.returncode == 0, taken.stdout[-3000:]
    assert info(head, "accepted")["status"] == "SUCCEEDED"
    assert IndexRoot(tmp_path / "other").current().manifest.seal.records == 19


PROBE = """
import json, sys
import ray
from danbooru_index.cli.entry import entry

def here():
    import packaging, tiny_extra, torch
    return [torch.__version__, packaging.__version__, tiny_extra.WORD]

ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print("found", json.dumps([here(), ray.get(ray.remote(here).remote())]))
entry(["build", *sys.argv[1:]])
"""


def clone_of_project(folder):
    """What a user's clone holds, as far as a job needs it."""
    for part in ("danbooru_index", "jobs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def tiny_wheel(folder):
    """A package of one word that needs `packaging`, in any version."""
    wheel = folder / "tiny_extra-1.0-py3-none-any.whl"
    info = "tiny_extra-1.0.dist-info"
    files = {
        "tiny_extra.py": 'WORD = "tiny"\n',
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-extra\nVersion: 1.0\n"
        "Requires-Dist: packaging\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@pytest.mark.long
@pytest.mark.parametrize("tool", ["uv", pytest.param("pip", marks=pytest.mark.release)])
def test_packages_that_a_job_brings_keep_to_the_pins(
    head, sample_shards, checkpoint, tmp_path, tool
):
    """By the files of `jobs/runtime_env/`, with one package more. What that package needs comes in
    the pinned version, torch is that of the node, in the driver and in a worker; and it builds.
    """
    if not (BIN / tool).exists():
        pytest.skip(f"{tool} is not installed here")
    clone = clone_of_project(tmp_path / "clone")
    wheel = tiny_wheel(tmp_path)
    for name in ("pip.yaml", "packages.txt"):
        file = clone / "jobs" / "runtime_env" / name
        file.write_text(re.sub(r"\btqdm\b", str(wheel), file.read_text()))
    (clone / "jobs" / "probe.py").write_text(PROBE)
    words = ["jobs/probe.py", sample_shards, "--index", tmp_path / "i", "--model", checkpoint]
    done = submit(
        head, *words, "--device", "cpu", folder=clone,
        options=["--runtime-env", clone / "jobs" / "runtime_env" / f"{tool}.yaml"],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    [found] = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    pinned = [version("torch"), version("packaging"), "tiny"]
    assert json.loads(found.removeprefix("found ")) == [pinned, pinned]
    assert IndexRoot(tmp_path / "i").current().manifest.seal.records == 468


@contextmanager
def submitted(head, job, *arguments):
    """A job that runs; what its log has said, as (moment, line)."""
    command = submit_command(head, *arguments, options=["--submission-id", job, *LIGHTS])
    with running(command, env=head.env, stdout=subprocess.PIPE) as process:
        yield process


@pytest.mark.long
def test_a_job_that_is_stopped_or_killed_goes_on_when_it_is_submitted_again(head, bench, expected):
    """`ray job stop`, then `kill -9` of the driver; meanwhile a second job for the same index is
    refused.
    """
    index, log = bench.index("jobs"), bench.folder / "jobs.log"
    words = [LIGHT, bench.shards, index, bench.model, "--address", head.address, "--log", log]
    slow = [*words, "--delay", "2"]

    def begun():
        return len(log.read_text().splitlines()) if log.exists() else 0

    with submitted(head, "first", *slow) as first:
        wait_for(lambda: begun() >= 6 or first.poll() is not None)
        second = submit(head, *words, options=["--submission-id", "second", *LIGHTS])
        assert second.returncode == 1
        assert "is at work on this index" in second.stdout
        assert info(head, "second")["driver_exit_code"] == 1
        subprocess.run(
            [RAY, "job", "stop", "--address", head.dashboard, "first"],
            env=os.environ | head.env, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        first.communicate(timeout=60)
        assert info(head, "first")["status"] == "STOPPED"
    done = begun()
    with submitted(head, "third", *slow) as third:
        wait_for(lambda: begun() >= done + 6 or third.poll() is not None)
        [driver] = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if (process.info["cmdline"] or ["", ""])[1:2] == [str(LIGHT)]
            and str(index) in process.info["cmdline"]
        ]
        os.kill(driver, 9)
        third.communicate(timeout=60)
        assert third.returncode == 1
        assert info(head, "third")["status"] == "FAILED"
    last = submit(head, *words, options=["--submission-id", "last", *LIGHTS])
    assert last.returncode == 0, last.stdout[-3000:]
    report = json.loads(next(line for line in last.stdout.splitlines() if line.startswith("{")))
    assert report["shards"]["skipped"] >= 6
    assert compare(index, expected) == []


@pytest.mark.long
@pytest.mark.release
def test_the_log_of_a_job_has_a_line_every_ten_seconds(head, bench):
    """No bar, no escape code."""
    index = bench.index("lines")
    words = [LIGHT, bench.shards, index, bench.model, "--address", head.address, "--delay", "0.5"]
    moments = []
    with submitted(head, "lines", *words) as job:
        for line in job.stdout:
            assert not re.search(r"[\x1b\r]", line)
            if "records (" in line:
                moments.append(time.monotonic())
    assert moments, "the build said nothing of how far it is"
    apart = [later - earlier for earlier, later in pairwise(moments)]
    assert all(seconds > 8 for seconds in apart), apart
