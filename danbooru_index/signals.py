"""SIGTERM as Ctrl-C: what a command, and again a Ray session (Ray installs a handler of its own), runs inside."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` in the block; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def interrupting_exit() -> Iterator[None]:
    """The exit that Ray's own handler of SIGTERM makes, in place while Ray starts, as `KeyboardInterrupt`."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """SIGTERM and Ctrl-C change nothing in the block.

    For the second in which Ray ends, with handlers of its own and for a moment with none: the work is done, or has
    failed, and the process is on its way out.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupted or signal.SIG_DFL)


@contextlib.contextmanager
def restoring() -> Iterator[None]:
    """Afterwards SIGTERM has the handler that it had before, whatever the block has installed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
