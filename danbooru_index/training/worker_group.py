"""Ray Train's worker group: started, followed by what its first worker logs, and its failure in one line."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from danbooru_index.cluster.environment import worker_environment
from danbooru_index.config import Device
from danbooru_index.errors import BuildFailedError, first_line
from danbooru_index.model.checkpoint import Checkpoint
from danbooru_index.model.device import cpu_count, probe_device, uncollected
from danbooru_index.progress import StepProgress
from danbooru_index.training.finetune_config import FinetuneConfig
from danbooru_index.training.model_card import read_curves
from danbooru_index.training.state import FAILURE, LOG

POLL_S = 1.0


def train_on_workers(config: FinetuneConfig, base: Checkpoint, state: Path, gpus: int) -> None:
    """Run Ray Train's worker group to its end; raise `BuildFailedError` that says what to do."""
    with uncollected():
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from danbooru_index.training.trainer import train

    (state / FAILURE).unlink(missing_ok=True)
    settings = asdict(config) | {
        "base": base.path,
        "state": str(state.resolve()),
        "device": "cuda" if gpus else "cpu",
        "precision": config.precision.value if gpus else probe_device(Device.CPU, config.precision).precision,
        "threads": 0 if gpus else cpu_count(),
    }
    trainer = TorchTrainer(
        train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=gpus or 1, use_gpu=bool(gpus)),
        run_config=RunConfig(
            name="run",
            storage_path=str((state / "ray").resolve()),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )
    try:
        with _followed(state / LOG):
            trainer.fit()
    except Exception as error:  # Ray Train has a class for each way to fail, and may chain another's
        raise _failure(state, error) from None


def _failure(state: Path, error: Exception) -> BuildFailedError:
    """What failed: as the worker left it, else (it was killed) as Ray says it."""
    try:
        note = json.loads((state / FAILURE).read_text())
    except (OSError, ValueError):
        note = {"memory": "OutOfMemory" in str(error) or "died" in str(error), "error": first_line(error)}
    if note["memory"]:
        remedy = "out of memory, as it seems: lower --batch-size, then --group-size, and start again in another folder"
    else:
        remedy = "the same command goes on from the last checkpoint"
    return BuildFailedError(f"the training stopped ({note['error']}): {remedy}")


@contextlib.contextmanager
def _followed(log: Path) -> Iterator[None]:
    """Progress on stderr while the block runs, from what the first worker logs."""
    ended = threading.Event()

    def follow() -> None:
        with contextlib.closing(StepProgress("training", "step", 0)) as progress:
            while not ended.wait(POLL_S):
                curves = read_curves(log)
                progress.total = curves.steps
                progress.show(curves.at, f"loss {curves.loss[-1][1]:.3f}" if curves.loss else "loading the model")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
