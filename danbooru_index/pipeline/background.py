"""Work of the driver's own beside starting Ray: in threads that hold nobody up who stops the build."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def in_background(function: Callable[..., T], *arguments: Any, **named: Any) -> Future[T]:
    """Call `function` in a daemon thread; `result()` waits for it, and raises what it raised."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:  # handed over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=work, name=function.__name__, daemon=True).start()
    return future
