"""SIGTERM as Ctrl-C, around a command and a Ray session; and an end to slow stops."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOP_S = 4.5
Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextlib.contextmanager
def _kept(*signals: signal.Signals) -> Iterator[Callable[[signal.Signals, Handler], object]]:
    """Afterwards these signals have the handlers that they had before. Yields what installs one:
    nothing outside the main thread, where Python allows none.
    """
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
    """Ray's own handler of SIGTERM exits while Ray starts: here as `KeyboardInterrupt`."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """SIGTERM and Ctrl-C change nothing in the block, but that `bounded_stops` hears them; SIGTERM
    not after it either, until `sigterm_restored` ends.

    For the second in which Ray ends: the work is done, or has failed, and the process is on its way
    out.
    """

    def nothing(_signal: int, _frame: FrameType | None) -> None: ...

    with _kept(signal.SIGINT) as install, _put_back(signal.SIGTERM, nothing):
        install(signal.SIGINT, nothing)
        yield


@contextlib.contextmanager
def _put_back(one: signal.Signals, handler: Handler) -> Iterator[None]:
    """This signal has this handler in the block, whatever Ray's native code sets meanwhile.

    Ray's driver gives SIGTERM its default action as it ends (`RayLog::UninstallSignalAction`), a
    second before Ray itself has ended, and Python is not told. So the handler is installed again
    at each call and return of Ray's Python code, by Python's hook for profilers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def step(frame: FrameType, _event: str, _argument: object) -> None:
        if "/ray/" in frame.f_code.co_filename:
            signal.signal(one, handler)

    before = sys.getprofile()
    signal.signal(one, handler)
    sys.setprofile(step)
    try:
        yield
    finally:
        sys.setprofile(before)
        signal.signal(one, handler)


@contextlib.contextmanager
def sigterm_restored() -> Iterator[None]:
    """Afterwards SIGTERM has the handler that it had before, whatever the block has installed."""
    with _kept(signal.SIGTERM):
        yield


@contextlib.contextmanager
def bounded_stops(last_words: str, grace_s: float = STOP_S) -> Iterator[None]:
    """After SIGTERM or Ctrl-C the block has so many seconds to end. Then this process says its last
    words, ends all that it has started and itself, with 1: whatever the main thread waits for, in
    code that never looks at signals.

    Python's own handler writes the signal's number to a pipe, also while the main thread is inside
    a library.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, written = os.pipe()
    os.set_blocking(written, False)
    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    ended = threading.Event()

    def watch() -> None:
        while word := os.read(heard, 1):
            if word[0] in (signal.SIGTERM, signal.SIGINT) and not ended.wait(grace_s):
                with contextlib.suppress(OSError):
                    os.write(2, f"{last_words}\n".encode())
                end_processes(descendants())
                os._exit(1)
        os.close(heard)

    threading.Thread(target=watch, name="stops", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(written)


def raise_in(thread: int, error: type[BaseException]) -> None:
    """Have another thread raise `error` at its next bytecode, by its identifier
    (`PyThreadState_SetAsyncExc`): for one that polls, in code that cannot be told to end.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def descendants(of: str = "") -> set[int]:
    """The processes below this one; `of`: only those whose command lines hold this word."""
    import psutil

    found: set[int] = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if not of or of in " ".join(process.cmdline()):
                    found.add(process.pid)
    return found


def end_processes(pids: set[int]) -> None:
    """End these processes at once; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
