"""What keeps time bounded: attempts counted in files, device calls under a watchdog."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time

from danbooru_index.errors import StorageError, first_line
from danbooru_index.pipeline.protocol import WorkerSettings

SHORTEST_HANG_S = 60.0
SLOWER = 20


class TooManyAttemptsError(Exception):
    """A shard was begun too often and never ended: it may be what kills its actors."""


def check_attempts(settings: WorkerSettings, shard: str, stage: str) -> None:
    """Count an attempt in files, which outlive actors; `TooManyAttemptsError` at the limit."""
    folder = settings.attempts
    folder.make_folder()
    for number in range(settings.attempt_limit):
        if (folder / f"{shard}.{stage}.{number}").create(b"", durable=False):
            return
    why = b""
    with contextlib.suppress(OSError):
        why = (folder / f"{shard}.{stage}.why").read()
    raise TooManyAttemptsError(
        f"its {stage} actor died {settings.attempt_limit} times{why.decode(errors='replace')}"
    )


def note_loss(settings: WorkerSettings, shard: str, stage: str, error: Exception) -> None:
    """Leave word of what ends this process, and where: of eight cards one may be bad."""
    said = f", the last time on {place(settings)}: {first_line(error)}"
    with contextlib.suppress(OSError, StorageError):
        (settings.attempts / f"{shard}.{stage}.why").replace(said.encode())


def place(settings: WorkerSettings) -> str:
    """The machine, and the card, of this process."""
    card = (
        f", GPU {os.environ.get('CUDA_VISIBLE_DEVICES', 'unknown')}"
        if settings.device == "cuda"
        else ""
    )
    return os.uname().nodename + card


def node_id() -> str:
    """The Ray node of this process: on one machine several may have one host name."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


class Watchdog:
    """A watchdog: ends this process when a device call does not end, so that a hang ends too.

    The limit is what the encoder says that a call may take on a slow device, or `SLOWER` times the
    slowest so far where that is more; never less than a minute. A limit given is the limit.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self._fixed = limit_s
        self._expected_s = math.inf
        self._limit_s = limit_s or math.inf
        self._running = 0
        self._counting = threading.Lock()
        self._last = time.monotonic()
        self._slowest = 0.0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def expect(self, call_s: float) -> None:
        """Say how long a device call may take."""
        self._expected_s = max(SHORTEST_HANG_S, call_s)
        self._limit_s = self._fixed or self._expected_s

    def tick(self) -> None:
        """A device call has ended."""
        now = time.monotonic()
        self._slowest = max(self._slowest, now - self._last)
        self._last = now
        self._limit_s = self._fixed or max(self._expected_s, SLOWER * self._slowest)

    def __enter__(self) -> None:
        with self._counting:
            if not self._running:
                self._last = time.monotonic()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._counting:
            self._running -= 1

    def _watch(self) -> None:
        while True:
            time.sleep(min(5.0, self._limit_s / 4))
            if self._running and time.monotonic() - self._last > self._limit_s:
                os._exit(70)
