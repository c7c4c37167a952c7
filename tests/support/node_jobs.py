"""A build on a cluster of several nodes, as the tests of nodes watch it."""

import json
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from faults import compare
from processes import running

LIGHT = Path(__file__).parent / "light.py"
CALLS = 3  # shards that an encoder has in hand, at the least


class Job:
    """A build that runs in a process of its own, its output, and what its encoders have begun."""

    def __init__(self, process, index, log):
        self.process, self.index, self.log = process, index, log
        self.err = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.err.append((time.monotonic(), line.rstrip()))

    @property
    def begun(self):
        """(digest of a shard's tokens, process, node) of every forward pass, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [tuple(line.split()[1:]) for line in lines]

    def nodes(self):
        return Counter(node for _, _, node in self.begun)

    def said(self, word, timeout=90, times=1):
        """Wait until it has said so, `times` times; when it did the last time."""
        found, end = [], time.monotonic() + timeout
        while len(found) < times and time.monotonic() < end:
            ended = not self._reader.is_alive()
            found = [at for at, line in self.err if word in line]
            if ended:
                break
            time.sleep(0.02)
        assert len(found) >= times, (word, self.process.poll(), self.err, self.nodes())
        return found[times - 1]

    def ended(self, code=0):
        """Wait for its end; its report, which is all of stdout."""
        out = self.process.stdout.read()
        self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        said = "\n".join(line for _, line in self.err)
        assert self.process.returncode == code, said
        assert "Traceback" not in said
        assert "retries remaining" not in said
        return json.loads(out) if code == 0 else out


@contextmanager
def job(bench, name, address, *options, shards=None, index=None, model=None, env=None):
    """A light build of the bench's shards on the cluster at an address; `Job`."""
    index, log = index or bench.index(name), bench.folder / f"{name}.log"
    command = [sys.executable, LIGHT, shards or bench.shards, index, model or bench.model]
    command += ["--address", address, "--log", log, *options]
    with running([str(word) for word in command], env=env) as process:
        yield Job(process, index, log)


def nothing_lost(made, expected, encoders, gone=0):
    """The index is whole, and at most the shards in flight were encoded again."""
    assert compare(made.index, expected) == []
    again = Counter(digest for digest, _, _ in made.begun)
    twice = sum(count - 1 for count in again.values())
    assert twice <= (gone or encoders) * (CALLS + 1) + 2, again.most_common(9)
