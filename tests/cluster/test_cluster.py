"""Builds against `ray start --head` with a token, and what a job asks of a cluster."""

import json
import re
import subprocess
import sys

import pytest
from head import answers
from nodes import free_ports
from processes import CLI, ROOT, bare_environment, run_cli, running, wait_for

from danbooru_index.cluster.resources import TOKENIZER_CPUS, _plan_gpus, nodes_at_work
from danbooru_index.errors import ClusterError
from danbooru_index.index.status import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_build_against_a_head_node_leaves_metrics(head, sample_shards, checkpoint, tmp_path):
    index = tmp_path / "index"
    options = [
        "--index",
        index,
        "--model",
        checkpoint,
        "--device",
        "cpu",
        "--address",
        head.address,
        "--json",
    ]
    with running(
        [
            sys.executable,
            "-m",
            "danbooru_index.cli",
            "build",
            str(sample_shards),
            *map(str, options),
        ],
        env=head.env,
    ) as job:
        metrics = wait_for(
            lambda: find_metric(head, "danbooru_index_records") or job.poll() is not None, every=0.5
        )
        out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    report = json.loads(out)
    assert report["records"] == 468
    assert report["shards"]["done"] == 8
    assert verify(str(index)).problems == []
    metrics = find_metric(head, "danbooru_index_records") or metrics
    assert metrics is not True, "the encoder's metrics were never exported"


def named_metrics(path):
    """The metrics of this project that a file names."""
    return set(re.findall(r"ray_danbooru_index_\w+", (ROOT / path).read_text(encoding="utf-8")))


def test_the_dashboard_and_the_documentation_name_what_a_run_exports(
    head, sample_shards, checkpoint, tmp_path
):
    """Every metric of the dashboard is among those of the endpoint, with the labels it groups by."""
    named = named_metrics("jobs/grafana.json")
    assert named == named_metrics("jobs/README.md")
    words = ["build", sample_shards, "--index", tmp_path / "i", "--model", checkpoint]
    words += ["--device", "cpu", "--address", head.address]
    with running([*CLI, *map(str, words)], env=head.env):
        lines = wait_for(lambda: exported(head, named), every=0.3)  # during the run, or after it
    text = "\n".join(lines)
    assert 'stage="encode"' in text
    assert 'outcome="done"' in text
    assert "NodeAddress=" in text
    assert "WorkerId=" in text


def exported(head, named):
    """The endpoint's lines about these metrics, once all of them are there."""
    text = (answers(head.metrics, head.env["RAY_AUTH_TOKEN"]) or b"").decode()
    lines = [line for line in text.splitlines() if line.split("{")[0] in named]
    return lines if {line.split("{")[0] for line in lines} == named else []


def find_metric(head, name):
    text = (answers(head.metrics, head.env["RAY_AUTH_TOKEN"]) or b"").decode()
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(f"ray_{name}") and "{" in line
    ]
    return sum(values)


def test_no_cluster_no_token_no_gpu(head, sample_shards, checkpoint, tmp_path):
    options = ["build", sample_shards, "--index", tmp_path / "i", "--model", checkpoint]
    refused = run_cli(*options, "--device", "cuda", "--address", head.address, env=head.env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr.strip().splitlines()[-1]
        == "danbooru-index: this cluster has no GPU; pass --device cpu"
    )
    without = {"RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}
    stranger = run_cli(
        *options, "--device", "cpu", "--address", head.address, env=head.env | without
    )
    assert stranger.returncode == 1
    assert "RAY_AUTH" in stranger.stderr.strip().splitlines()[-1]
    assert "Traceback" not in stranger.stderr
    another = run_cli(
        *options,
        "--device",
        "cpu",
        "--address",
        head.address,
        env=head.env | {"RAY_AUTH_TOKEN": "0" * 64},
    )
    assert another.returncode == 1
    assert (
        "asks for a token that this user has not shown" in another.stderr.strip().splitlines()[-1]
    )
    port = head.dashboard.rpartition(":")[2]
    dashboard = run_cli(*options, "--device", "cpu", "--address", f"127.0.0.1:{port}", env=head.env)
    assert dashboard.returncode == 1
    assert (
        f"pass the control store's, {head.address}, or submit the job"
        in dashboard.stderr.strip().splitlines()[-1]
    )
    nobody = run_cli(
        *options, "--device", "cpu", "--address", f"127.0.0.1:{free_ports(1)[0]}", env=head.env
    )
    assert nobody.returncode == 1
    assert "check --address" in nobody.stderr.strip().splitlines()[-1]
    assert "Traceback" not in nobody.stderr


INHERITED = """
import json, os
from danbooru_index.cluster.session import ray_session
with ray_session(None) as inherited:
    import ray
    there = ray.get(ray.remote(lambda: dict(os.environ)).remote())
names = ("LANCE_LOG", "MALLOC_ARENA_MAX")
print(json.dumps([inherited, *([place.get(name) for name in names] for place in (there, os.environ))]))
"""
IMPORTED_FIRST = """
import ray
from danbooru_index import BuildConfig, build
build(BuildConfig(shards="SHARDS", index="INDEX"))
"""


@pytest.fixture
def bare(tmp_path):
    return bare_environment(tmp_path)


def in_a_new_process(*arguments, env):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_the_workers_of_a_private_ray_have_their_environment_from_the_start(bare):
    """So that a build's actors can be processes that Ray has started already; the driver's own is
    as it was.
    """
    done = in_a_new_process("-c", INHERITED, env=bare | {"LANCE_LOG": "warn"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, ["error", "2"], ["warn", None]]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_build_with_nothing_set_at_all(bare, sample_shards, tmp_path):
    """No option, no variable of Ray's: Ray must not be imported before it is told of its token."""
    done = in_a_new_process(
        "-m",
        "danbooru_index.cli",
        "build",
        sample_shards,
        "--index",
        tmp_path / "index",
        env=bare | {"PATH": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr
    assert "m3-mini" in done.stdout


@pytest.mark.slow
def test_ray_imported_before_it_has_a_token_is_said_at_once(bare, sample_shards, tmp_path):
    script = IMPORTED_FIRST.replace("SHARDS", str(sample_shards)).replace(
        "INDEX", str(tmp_path / "index")
    )
    done = in_a_new_process("-c", script, env=bare | {"PATH": "/nonexistent"})
    assert (
        "ClusterError: ray was imported before danbooru_index could give a Ray of its own a token"
        in done.stderr
    )
    assert not list((tmp_path / "index").glob("generations/*"))


@pytest.mark.parametrize(
    ("nodes", "encoders", "num_cpus", "tokenizers", "calls"),
    [
        ([{"CPU": 16, "GPU": 1, "memory": 100e9}], 1, 1.0, 2, 10),
        ([{"CPU": 16, "GPU": 1, "memory": 6e9}], 1, 1.0, 2, 5),
        ([{"CPU": 128, "GPU": 8}, {"CPU": 8}], 8, 1.0, 16, 10),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 16, "GPU": 1}], 8, 1.0, 16, 4),
        ([{"CPU": 2, "GPU": 8}], 8, 0.1, 4, 3),
        ([{"CPU": 1, "GPU": 1}], 1, 0.5, 2, 3),
        ([{"CPU": 0, "GPU": 1}], 1, 0.1, 1, 3),
    ],
)
def test_what_a_job_asks_of_a_cluster_with_gpus_fits(nodes, encoders, num_cpus, tokenizers, calls):
    plan = _plan_gpus(nodes, encoders, None, (3, 10))
    assert (plan.num_cpus, plan.tokenizers, plan.max_encoders, plan.num_gpus) == (
        num_cpus,
        tokenizers,
        None,
        1,
    )
    assert plan.calls == calls
    asked = encoders * plan.num_cpus + plan.tokenizers * TOKENIZER_CPUS
    assert asked <= sum(node["CPU"] for node in nodes) or not nodes[0]["CPU"]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_garbage_that_holds_references_of_ray_does_not_end_the_process_while_ray_ends():
    """Another thread makes rings around references meanwhile; without `uncollected` such processes
    ended with 1.
    """
    script = """
import gc, threading, time
from danbooru_index.cluster.session import ray_session

def rings():
    while references:
        ring = [references.pop()]
        ring.append(ring)
        del ring
        [[[]] for _ in range(300)]
        time.sleep(0.0003)

with ray_session(None):
    import ray
    references = [ray.put(1) for _ in range(6_000)]
    threading.Thread(target=rings, daemon=True).start()
    gc.set_threshold(200, 2, 2)
print("ended well")
"""
    with running([sys.executable, "-c", script]) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == "ended well\n"


def test_the_first_worker_of_a_cluster_is_waited_for():
    """A head without CPUs and nothing else: no plan is made for it."""
    head, worker = {"node:192.0.2.1": 1.0}, {"CPU": 8.0, "GPU": 1.0}
    seen = iter([[head], [head], [head, worker]])
    assert nodes_at_work(lambda: next(seen), pause_s=0.0) == [head, worker]
    with pytest.raises(ClusterError, match="no node of this cluster has a CPU"):
        nodes_at_work(lambda: [head], limit_s=0.0, pause_s=0.0)
