"""SIGTERM as Ctrl-C: what a command, and again a Ray session (Ray installs a handler of its own), runs inside."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextlib.contextmanager
def _kept(*signals: signal.Signals) -> Iterator[Callable[[signal.Signals, Handler], object]]:
    """Afterwards these signals have the handlers that they had before. Yields what installs one: nothing outside the
    main thread, where Python allows none."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _signal, _handler: None
        return
    before = {one: signal.getsignal(one) for one in signals}
    try:
        yield signal.signal
    finally:
        for one, handler in before.items():
            signal.signal(one, handler or signal.SIG_DFL)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` in the block; outside the main thread nothing changes."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _kept(signal.SIGTERM) as install:
        install(signal.SIGTERM, interrupt)
        yield


@contextlib.contextmanager
def interrupting_exit() -> Iterator[None]:
    """The exit that Ray's own handler of SIGTERM makes, in place while Ray starts, as `KeyboardInterrupt`."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """SIGTERM and Ctrl-C change nothing in the block; SIGTERM not after it either, until `restoring` ends.

    For the second in which Ray ends, with handlers of its own and for a moment with none: the work is done, or has
    failed, and the process is on its way out.
    """
    with _kept(signal.SIGINT) as install:
        install(signal.SIGINT, signal.SIG_IGN)
        install(signal.SIGTERM, signal.SIG_IGN)
        yield


@contextlib.contextmanager
def restoring() -> Iterator[None]:
    """Afterwards SIGTERM has the handler that it had before, whatever the block has installed."""
    with _kept(signal.SIGTERM):
        yield
