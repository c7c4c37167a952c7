"""A function of record batches, by several processes: in order, a few batches ahead.

Plain child processes that speak Arrow: `multiprocessing` would run the caller's program again, Ray
may be gone when an index is sealed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import IO, cast

import pyarrow as pa

from danbooru_index.errors import StorageError

Tables = tuple[pa.Table, ...]
LENGTH_BYTES = 8
BATCHES_AHEAD = 2  # batches a process


def spread(function: str, batches: Iterable[pa.RecordBatch], workers: int) -> Iterator[Tables]:
    """`module:function` of each batch, in order; by so many processes, in this one where it is one.

    Raises `StorageError` where a process fails.
    """
    if workers <= 1:
        yield from map(_found(function), batches)
        return
    with ExitStack() as opened:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(workers):
            idle.put(opened.enter_context(_Worker(function)))

        def ask(batch: pa.RecordBatch) -> Tables:
            worker = idle.get()
            try:
                return worker.ask(batch)
            finally:
                idle.put(worker)

        pool = opened.enter_context(ThreadPoolExecutor(workers))
        waiting: deque[Future[Tables]] = deque()
        for batch in batches:
            waiting.append(pool.submit(ask, batch))
            if len(waiting) > BATCHES_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Worker:
    """A child process that answers one batch after the other."""

    def __init__(self, function: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for who asks; it ends this process
        )

    def ask(self, batch: pa.RecordBatch) -> Tables:
        try:
            _send(cast(IO[bytes], self._process.stdin), (pa.Table.from_batches([batch]),))
            return _received(cast(IO[bytes], self._process.stdout))
        except (OSError, EOFError):
            raise StorageError(
                f"a process that reads names ended with {self._process.wait()}: run the same"
                " command again"
            ) from None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _send(pipe: IO[bytes], tables: Tables) -> None:
    pipe.write(len(tables).to_bytes(LENGTH_BYTES, "little"))
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        pipe.write(len(content).to_bytes(LENGTH_BYTES, "little"))
        pipe.write(content)
    pipe.flush()


def _received(pipe: IO[bytes]) -> Tables:
    """Raises `EOFError` where the other side is gone."""
    return tuple(
        pa.ipc.open_stream(_exactly(pipe, _length(pipe))).read_all() for _ in range(_length(pipe))
    )


def _length(pipe: IO[bytes]) -> int:
    return int.from_bytes(_exactly(pipe, LENGTH_BYTES), "little")


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _found(function: str) -> Callable[[pa.RecordBatch], Tables]:
    module, _, name = function.partition(":")
    found: Callable[[pa.RecordBatch], Tables] = getattr(importlib.import_module(module), name)
    return found


def _serve(function: str) -> None:
    """What a child process does until its standard input ends."""
    called, pipe = _found(function), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while True:
        try:
            (table,) = _received(sys.stdin.buffer)
        except EOFError:
            return
        batches = table.combine_chunks().to_batches()
        _send(pipe, called(batches[0] if batches else pa.record_batch([], table.schema)))


if __name__ == "__main__":
    _serve(sys.argv[1])
