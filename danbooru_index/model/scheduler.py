"""Threads for device calls: batches in order, and no pause between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from danbooru_index.model.packing import PackedCall

MOST_STREAMS = 4
AHEAD = 2  # batches on the device: while one ends, the next has begun
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Launched:
    """A call under way: a CPU stream's `future`, a GPU's `event`, or done (neither)."""

    rows: int
    future: Future[None] | None = None
    event: Any = None


class Scheduler:
    """Threads of its own do the forward passes, so there are few OpenMP teams and buffers, however
    many call `encode`.

    On a CPU device calls go to streams with a part of the cores each: a core that something else
    takes for a moment then keeps one call waiting, not all cores at the end of each matrix product.
    """

    def __init__(self, device: str, threads: int, streams: int | None = None) -> None:
        import torch

        fitting = max(n for n in range(1, MOST_STREAMS + 1) if threads % n == 0)
        self.streams = 1 if device == "cuda" else streams or fitting
        self.device, self._threads = device, threads
        self._streams = ThreadPoolExecutor(
            self.streams, "stream", torch.set_num_threads, (threads // self.streams,)
        )
        ahead = AHEAD if device == "cuda" or self.streams > 1 else 1
        self._forwards = ThreadPoolExecutor(ahead, "forward", torch.set_num_threads, (threads,))
        self.launching = threading.Lock()

    def again(self, streams: int | None) -> Scheduler:
        """Another one for the same device and cores."""
        return Scheduler(self.device, self._threads, streams)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in a thread that has all cores; wait for the result."""
        return self._forwards.submit(function, *arguments).result()

    def as_a_call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in a thread with as many cores as a device call has; wait for the result."""
        pool = self._streams if self.streams > 1 else self._forwards
        return pool.submit(function, *arguments).result()

    def in_every_stream(self, function: Callable[..., T], *arguments: Any) -> list[T]:
        """Call in all streams at once; wait for the results."""
        return [
            done.result()
            for done in [self._streams.submit(function, *arguments) for _ in range(self.streams)]
        ]

    def launch(
        self,
        calls: Sequence[PackedCall],
        work: Callable[[PackedCall, int, int], None],
        on_rows: Callable[[int], None] | None,
    ) -> list[Launched]:
        """Begin all calls of a batch: `work(call, rows before, tokens before)`."""
        rows = np.cumsum([0, *(call.rows for call in calls)]).tolist()  # before each call
        tokens = np.cumsum([0, *(call.tokens for call in calls)]).tolist()  # before each call
        launched = []
        for place, call in enumerate(calls):
            if self.streams > 1 and len(calls) > 1:
                future = self._streams.submit(work, call, rows[place], tokens[place])
                launched.append(Launched(call.rows, future=future))
                continue
            work(call, rows[place], tokens[place])
            launched.append(Launched(call.rows, event=self.mark()))
            if on_rows and launched[-1].event is None:
                on_rows(call.rows)
        return launched

    def wait(self, launched: Sequence[Launched], on_rows: Callable[[int], None] | None) -> None:
        """Wait for calls in order, telling each; raise what one raised, the rest cancelled."""
        try:
            for one in launched:
                if one.future is not None:
                    one.future.result()
                elif one.event is not None:
                    one.event.synchronize()
                else:
                    continue
                if on_rows:
                    on_rows(one.rows)
        finally:
            for one in launched:
                if one.future is not None:
                    one.future.cancel()

    def mark(self) -> Any:
        """On a GPU, what can be waited for: the end of all that has been launched."""
        if self.device == "cpu":
            return None
        import torch

        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
