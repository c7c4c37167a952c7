"""What a build reads in the background is read to its end, whatever ends the process."""

import subprocess
import sys

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
