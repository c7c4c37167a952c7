"""Machines as they are: no HOME, another user's id, little of everything, odd locales, dead
proxies; one build each.
"""

import json
import os
import shutil
import subprocess

import pytest
from processes import CLI, ROOT, bare_environment

from danbooru_index.index.shard_stats import ShardStats
from danbooru_index.pipeline.reporting import encoding_seconds

pytestmark = pytest.mark.slow


def build(tmp_path, shards, model, script, env):
    """A build by the command line inside a shell script, `"$@"` being the command."""
    index = tmp_path / "index"
    command = [
        *CLI,
        "build",
        shards,
        "--index",
        index,
        "--model",
        model,
        "--device",
        "cpu",
        "--json",
    ]
    done = subprocess.run(
        ["bash", "-c", script, "bash", *map(str, command)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["records"] == 468
    assert "Traceback" not in done.stderr
    return index


@pytest.mark.long
@pytest.mark.ray
def test_a_bare_environment_with_little_of_everything(
    ray_session, tmp_path, sample_shards, checkpoint
):
    """No HOME, the C locale, dead proxies, 256 open files, umask 077, one core; another Ray on the
    machine.
    """
    env = bare_environment(tmp_path)
    del env["HOME"]
    env |= {"LANG": "C", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    env |= dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"),
        "http://127.0.0.1:9",
    )
    one_core = "taskset -c 0 " if shutil.which("taskset") else ""
    index = build(
        tmp_path, sample_shards, checkpoint, f'ulimit -n 256; umask 077; exec {one_core}"$@"', env
    )
    assert (index / "CURRENT.json").stat().st_mode & 0o077 == 0


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="another user's id needs root and setpriv",
)
def test_another_users_id_without_a_name_a_home_or_shared_memory(
    tmp_path, sample_shards, checkpoint
):
    """As in a container: an id that is in no list of users, a HOME that cannot be written, 64 MB of
    /dev/shm.
    """
    (tmp_path / "home").mkdir(mode=0o555)
    folder = tmp_path / "own"
    folder.mkdir()
    os.chown(folder, 54321, 54321)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    script = (
        "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm 2>/dev/null;"
        "exec setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps +dac_read_search "
        '--ambient-caps +dac_read_search "$@"'
    )
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount of its own cannot be made here")
    env = bare_environment(tmp_path / "home") | {
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(tmp_path / "r"),
    }
    (tmp_path / "r").mkdir(mode=0o777)
    (tmp_path / "r").chmod(0o777)
    env = {name: value for name, value in env.items() if name != "RAY_TMPDIR"} | {
        "TMPDIR": str(folder)
    }
    build(folder, sample_shards, checkpoint, f'exec unshare -m bash -c \'{script}\' "$0" "$@"', env)


def test_a_clock_that_jumps_spoils_no_report():
    """Times of shards are the workers' own: a span that a jump made impossible is bounded by what
    surely passed.
    """
    steady = [ShardStats(100.0, 103.0), ShardStats(102.0, 108.0)]
    assert encoding_seconds(steady, total=20.0) == 8.0
    back = [ShardStats(100.0, 103.0), ShardStats(-3500.0, -3494.0)]
    assert encoding_seconds(back, total=20.0) == 20.0
    assert encoding_seconds([ShardStats(100.0, 90.0)], total=20.0) > 0
