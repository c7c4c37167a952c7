"""The environment variables that must reach the workers of a cluster."""

from __future__ import annotations

import os

HF_VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH")


def worker_environment() -> dict[str, str]:
    """The variables that must reach the workers of a cluster: the hub's, and quiet Lance logs.

    `HF_TOKEN` is left out: Ray shows a job's `runtime_env` in its dashboard and logs. The driver fetches the model.
    """
    passed = {name: os.environ[name] for name in HF_VARIABLES if name in os.environ and name != "HF_TOKEN"}
    quiet = {"LANCE_LOG": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # Measured with the tiny checkpoint: oneDNN kept a primitive for each of 1,024 shapes, 0.4 GB more, and no faster.
    small = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "MALLOC_ARENA_MAX": "2"}
    return passed | quiet | small
