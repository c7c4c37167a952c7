"""Ray Train's worker group: started, followed by its first worker's log; how it failed."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from danbooru_index.choices import Device
from danbooru_index.cluster.resources import gpus_for, on_worker, worker_environment
from danbooru_index.cluster.session import ray_session
from danbooru_index.errors import BuildFailedError, first_line
from danbooru_index.machine import cpu_count, uncollected
from danbooru_index.model.checkpoint import Checkpoint
from danbooru_index.model.device import probe_device
from danbooru_index.progress import StepProgress
from danbooru_index.training.finetune_config import FinetuneConfig
from danbooru_index.training.model_card import read_curves
from danbooru_index.training.pairs import FAILURE, LOG

POLL_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trainers:
    """The workers of a training: one on each of so many GPUs, or one on the CPU."""

    config: FinetuneConfig
    gpus: int

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function where a GPU is, if there is one."""
        return cast(T, on_worker(1, 1, function, *arguments)) if self.gpus else function(*arguments)

    def train(self, base: Checkpoint, state: Path) -> None:
        """Train to the end; raise `BuildFailedError` that says what to do."""
        _train_on_workers(self.config, base, state, self.gpus)


@contextlib.contextmanager
def trainers(config: FinetuneConfig) -> Iterator[Trainers]:
    """The workers for a training, on a Ray that is there for the length of a block."""
    with ray_session(config.address):
        yield Trainers(config, gpus_for(config.device, config.num_gpus))


def _train_on_workers(config: FinetuneConfig, base: Checkpoint, state: Path, gpus: int) -> None:
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
        "precision": (
            config.precision.value if gpus else probe_device(Device.CPU, config.precision).precision
        ),
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
    except Exception as error:
        # Ray Train has a class for each way to fail, and may chain another's
        raise _failure(state, error) from None


def _failure(state: Path, error: Exception) -> BuildFailedError:
    """What failed: as the worker left it, else (it was killed) as Ray says it."""
    try:
        note = json.loads((state / FAILURE).read_text())
    except (OSError, ValueError):
        note = {
            "memory": "OutOfMemory" in str(error) or "died" in str(error),
            "error": first_line(error),
        }
    if note["memory"]:
        remedy = (
            "out of memory, as it seems: lower --batch-size, then --group-size, and start again in"
            " another folder"
        )
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
                progress.show(
                    curves.at,
                    f"loss {curves.loss[-1][1]:.3f}" if curves.loss else "loading the model",
                )

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
