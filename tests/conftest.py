"""Shared fixtures: a temporary HOME, a small checkpoint in BGE-M3's format, Ray once a session,
real tags where shared.
"""

import gzip
import json
import os
import sys
import tempfile
from pathlib import Path

HOME = tempfile.mkdtemp(prefix="home-")
os.environ |= {
    "HOME": HOME,
    "HF_HOME": f"{HOME}/hf",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only; read when ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "LANCE_LOG": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
os.environ.pop("RAY_ADDRESS", None)
sys.path.insert(0, str(Path(__file__).parent / "support"))

import pytest
from checkpoints import SAMPLE, SHARED, make_checkpoint

from danbooru_index.ingest.prepare import prepare
from danbooru_index.prepare_config import PrepareConfig


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint: 2 layers, 64 wide, seed 0."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def sample() -> list[dict]:
    """The records of the project's own sample."""
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def sample_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as 8 shards of 60 records."""
    out = tmp_path_factory.mktemp("prepared") / "shards"
    prepare(PrepareConfig((str(SAMPLE),), str(out), shard_rows=60))
    return out


@pytest.fixture(scope="session")
def real_records() -> list[dict]:
    """Every 50th of the 137,317 real records; skipped by name where shared/ is not there."""
    path = SHARED / "data" / "danbooru_tags.jsonl.gz"
    if not path.exists():
        pytest.skip("shared/data/danbooru_tags.jsonl.gz is not here")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for number, line in enumerate(lines) if number % 50 == 0]


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for the whole session; `build` uses it, since it is started already."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
