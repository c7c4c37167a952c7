"""Starting commands and ending just them and what they started: always by process id, never by
name.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "danbooru_index.cli"]


def run_cli(
    *arguments: str | Path,
    stdin: object = "",
    env: dict | None = None,
    timeout: float = 180,
    cwd: Path = ROOT,
):
    """Run one command to its end; stdout and stderr apart. `stdin`: its text, or an open file."""
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        input=stdin if isinstance(stdin, str) else None,
        stdin=None if isinstance(stdin, str) else stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | (env or {}),
        cwd=cwd,
        check=False,
    )


def run_here(capfd, *arguments: str | Path) -> str:
    """One command in this process, which has imported what it needs; it must end well. Its
    stdout.
    """
    from danbooru_index.cli.entry import main

    capfd.readouterr()
    assert main([*map(str, arguments)]) == 0
    return capfd.readouterr().out


def bare_environment(home: Path) -> dict[str, str]:
    """The variables of a user who has set none for Ray, Lance or tokenizers, as the tests' own
    processes have.
    """
    ours = ("RAY_", "LANCE_", "TOKENIZERS_", "MALLOC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "HOME": str(home)
    }


def one_line(answer, code):
    assert answer.returncode == code, answer.stderr
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    lines = answer.stderr.strip().splitlines()
    assert lines[-1].startswith("danbooru-index: ")
    return lines[-1]


@contextmanager
def running(
    command: list[str],
    env: dict | None = None,
    stdout: object = subprocess.PIPE,
    *,
    stdin: bool = False,
) -> Iterator[subprocess.Popen]:
    """A command in the background (`stdin`: a pipe to it); it and all its descendants are ended at the end of the block."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin else None,
        stdout=stdout,
        stderr=subprocess.PIPE if stdout is subprocess.PIPE else subprocess.STDOUT,
        text=True,
        env=os.environ | (env or {}),
        cwd=ROOT,
        start_new_session=True,
    )
    family = Family(process.pid)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(0.3):
            family.refresh()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield process
    finally:
        ended.set()
        follower.join()
        family.refresh()
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)
        family.end()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


class Family:
    """A process and everything it ever started, as far as seen: those whose session or parent leads
    back to it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members: dict[int, psutil.Process] = {}

    def refresh(self) -> list[psutil.Process]:
        """Look for new members; also keeps those whose parent has died since."""
        for known in [self._pid, *self._members]:
            try:
                for child in psutil.Process(known).children(recursive=True):
                    self._members[child.pid] = child
            except psutil.NoSuchProcess:
                continue
        return [member for member in self._members.values() if member.is_running()]

    def end(self) -> None:
        """End what is left, by process id."""
        for member in self.refresh():
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(list(self._members.values()), timeout=20)

    def named(self, word: str) -> list[psutil.Process]:
        """The members whose command line holds `word`."""
        found = []
        for member in self.refresh():
            try:
                if word in " ".join(member.cmdline()):
                    found.append(member)
            except psutil.Error:
                continue
        return found


def wait_for(condition: Callable[[], object], timeout: float = 90, every: float = 0.02) -> object:
    """Wait until `condition` is truthy and return it; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(every)
    raise AssertionError(f"not within {timeout} s: {condition}")
