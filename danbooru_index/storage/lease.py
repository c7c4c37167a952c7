"""Ownership on an object store: a lease that is renewed, replaced only while unchanged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from danbooru_index.errors import IndexBusyError, StorageError

LEASE_S = 60.0
JOIN_S = 30.0  # for a renewal that is under way


class Versioned(Protocol):
    """An object whose versions can be told apart."""

    def create(self, content: bytes, *, durable: bool = True) -> bool: ...

    def swap(self, content: bytes, version: str) -> str | None:
        """Replace the object if it has this version; return the new one, None if it has not."""

    def read_version(self) -> tuple[bytes, str]: ...


@contextlib.contextmanager
def leased(root: str, path: Versioned) -> Iterator[None]:
    """Own the index at `root` by a lease that is renewed; raise `IndexBusyError` while another
    holds it.

    A killed owner is replaced when its lease runs out, `LEASE_S` after its last renewal by the
    clocks of the machines. An owner that cannot renew in time stops as by Ctrl-C; even if it went
    on, nothing would be lost or doubled.
    """
    lease = _Lease(path)
    lease.acquire(root)
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    keeper.start()
    try:
        yield
    except BaseException:  # also Ctrl-C, which is how a lost lease stops its owner
        if lease.lost:
            raise StorageError(
                f"{root}: this process no longer owns the index: its lease could not be renewed in"
                f" {LEASE_S:.0f} s, or another process took it; nothing is lost: run the same"
                " command again when no other is at work"
            ) from None
        raise
    finally:
        ended.set()
        keeper.join(timeout=JOIN_S)
        lease.release()


class _Lease:
    """One holder's claim: an object with an end time, replaced only by its holder."""

    def __init__(self, path: Versioned) -> None:
        self._path = path
        self._holder = uuid.uuid4().hex
        self._version: str | None = None
        self._until = 0.0
        self.lost = False

    def acquire(self, root: str) -> None:
        try:
            self._path.create(self._content(time.time() + LEASE_S), durable=False)
            content, version = self._path.read_version()
        except OSError as error:
            raise StorageError(f"{root}: {error.strerror}") from None
        note = _read_note(content)
        if note["holder"] == self._holder:  # created now, even if the reply to that was lost
            self._version, self._until = version, float(note["until"])
        elif time.time() < note["until"] or not self._take(version):
            raise IndexBusyError(
                f"{root}: process {note['pid']} on {note['host']} is at work on this index; wait"
                f" for it or end it (its lease ends by itself {LEASE_S:.0f} s after it does)"
            )

    def keep(self, ended: threading.Event) -> None:
        """Renew until `ended`; after failing too long, stop the main thread as Ctrl-C does."""
        while not ended.wait(LEASE_S / 4):
            with contextlib.suppress(OSError):
                if not self._take(self._version or ""):
                    break
            if time.time() > self._until:
                break
        if not ended.is_set():
            self.lost = True
            os.kill(os.getpid(), signal.SIGINT)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._path.swap(self._content(0.0), self._version or "")

    def _take(self, version: str) -> bool:
        """Make the lease this holder's, from now; a lost reply is recognised by reading it back."""
        until = time.time() + LEASE_S
        taken = self._path.swap(self._content(until), version)
        if taken is None:
            content, taken = self._path.read_version()
            if _read_note(content)["holder"] != self._holder:
                return False
        self._version, self._until = taken, until
        return True

    def _content(self, until: float) -> bytes:
        note = {
            "holder": self._holder,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "until": until,
        }
        return json.dumps(note).encode()


def _read_note(content: bytes) -> dict[str, Any]:
    try:
        note = json.loads(content)
        return {
            "holder": str(note["holder"]),
            "pid": note["pid"],
            "host": note["host"],
            "until": float(note["until"]),
        }
    except (ValueError, KeyError, TypeError):
        return {"holder": "", "pid": "?", "host": "?", "until": 0.0}
