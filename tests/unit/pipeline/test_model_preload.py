"""What a build reads in the background is read to its end, whatever ends the process."""

import subprocess
import sys

import pytest

from danbooru_index.pipeline.model_preload import in_background

ENDS_MEANWHILE = """
import time
from danbooru_index.pipeline.model_preload import in_background

def read():
    time.sleep(1)
    print("read to the end", flush=True)

in_background(read)
raise SystemExit(5)
"""


def test_a_process_that_ends_waits_for_what_is_read_in_the_background():
    """Arrow waits for ever at the end of a process in which a reader was cut off."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS_MEANWHILE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (5, "read to the end\n"), done.stderr


class PanicError(BaseException):
    """As Rust's libraries raise it: no Exception."""


def test_whoever_asks_is_told_of_a_panic_too():
    def panic():
        raise PanicError("at the disco")

    with pytest.raises(PanicError, match="disco"):
        in_background(panic).result(timeout=30)
