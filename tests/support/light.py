"""A build whose forward pass is a table look-up; everything else is the product. For faults by the
hundred.

    python tests/support/light.py SHARDS INDEX MODEL [--address RAY] [--failpoint NAME:ACTION:TOKEN:SKIP] [--gpus] ...

Ends as the command line does: the report as JSON on stdout, or one line on stderr, with the same
exit codes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from faults import parse_failpoint

from danbooru_index.choices import Device, DeviceInfo, Precision
from danbooru_index.config import BuildConfig
from danbooru_index.embeddings import Embeddings
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.log_lines import log_to_stderr

SPECIAL = 4  # <s> <pad> </s> <unk>
HOLD_S = 150.0
SIMULATED = DeviceInfo("cuda", "a logical GPU", "fp32")


class LightEncoder:
    """Each token has a fixed random vector: the outputs of a text are a function of its tokens, to
    the bit.
    """

    tokens_per_batch = 2048
    peak_memory = 0

    def __init__(
        self,
        dim,
        delay=0.0,
        log="",
        fault="",
        needle=(),
        slow="",
        together=0,
        hold="",
        hold_s=HOLD_S,
    ):
        self._together, self._hold, self._hold_s = together, hold, hold_s
        self._delay, self._log = delay * (10 if slow and _first(slow) else 1), log
        self._device = threading.Lock() if slow else contextlib.nullcontext()
        self._fault, self._needle = fault, np.asarray(needle, dtype=np.int32).tobytes()
        chance = np.random.default_rng(7)
        self._vectors = chance.normal(size=(4096, dim)).astype(np.float32)
        self._weights = (chance.random(4096) + 0.05).astype(np.float32)

    def call_s(self, max_length):
        return 600.0 if self._together or self._hold else 60.0

    def encode(self, batch, on_rows=None, stats=None):
        if self._log and len(batch.token_ids):
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(
                    f"{len(batch.lengths)} {xxhash.xxh64_hexdigest(batch.token_ids.tobytes())}"
                    f" {os.getpid()} {_node()}\n"
                )
        self._wait()
        if self._fault and self._needle in np.asarray(batch.token_ids, dtype=np.int32).tobytes():
            self._fail()
        started = time.perf_counter()
        lengths = np.asarray(batch.lengths, dtype=np.int64)
        ids = np.asarray(batch.token_ids, dtype=np.int64) % 4096
        starts = np.cumsum(lengths) - lengths
        first = np.zeros(len(ids), dtype=bool)
        first[starts] = True
        vectors = self._vectors[ids]
        dense = np.add.reduceat(vectors.astype(np.float64) * (1 + ids % 7)[:, None], starts, axis=0)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        keys = np.unique((rows << 32) + np.asarray(batch.token_ids)[:])
        keys = keys[(keys & 0xFFFFFFFF) >= SPECIAL]
        tokens = keys & 0xFFFFFFFF
        if on_rows:
            on_rows(len(lengths))
        if stats is not None:
            stats.seconds += time.perf_counter() - started
            stats.tokens += len(ids)
            stats.computed += len(ids)
            stats.processed += len(ids)
        return Embeddings(
            dense=_unit(dense).astype(np.float16),
            sparse_ids=tokens.astype(np.int32),
            sparse_weights=self._weights[tokens % 4096],
            sparse_lengths=np.bincount(keys >> 32, minlength=len(lengths)).astype(np.int64),
            colbert=_unit(vectors[~first]).astype(np.float16),
            colbert_lengths=lengths - 1,
            non_finite=np.empty(0, np.int64),
        )

    def _wait(self):
        """Until as many encoders have begun a call as are to begin together, and until the file is
        there that they are held for; for so many seconds at most.
        """
        until = time.monotonic() + self._hold_s
        while time.monotonic() < until and (self._alone() or self._is_held()):
            time.sleep(0.2)
        with self._device:
            time.sleep(self._delay)

    def _alone(self):
        if self._together:
            with open(self._log, encoding="utf-8") as file:
                begun = {line.split()[2] for line in file if line.endswith("\n")}
            self._together = self._together if len(begun) < self._together else 0
        return bool(self._together)

    def _is_held(self):
        self._hold = "" if self._hold and os.path.exists(self._hold) else self._hold
        return bool(self._hold)

    def _fail(self):
        """What a device, a driver or the kernel may do to a process at one text."""
        if self._fault == "device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._fault == "memory":
            raise MemoryError("out of memory even at 1 tokens a call")
        if self._fault == "hang":
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGKILL)


def _node():
    """The Ray node that this process works on: on one machine all have one host name."""
    import ray

    return ray.get_runtime_context().get_node_id()


def _first(path):
    """Whether this process is the first to ask."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True)
class Light:
    """The factory that `BuildConfig.encoder` takes: built on the worker. `slow`: a file; the encoder
    that makes this file works at a tenth of the speed, and every device does one call after
    another. `together`: so many encoders begin before any ends. `hold`: a file without which no
    call ends before `hold_s` seconds.
    """

    delay: float = 0.0
    log: str = ""
    fault: str = ""
    needle: tuple[int, ...] = ()
    device: DeviceInfo | None = None
    slow: str = ""
    together: int = 0
    hold: str = ""
    hold_s: float = HOLD_S

    def __call__(self, settings):
        return LightEncoder(
            settings.dim, self.delay, self.log, self.fault, self.needle, self.slow, self.together,
            self.hold, self.hold_s,
        )  # fmt: skip


@dataclass(frozen=True)
class OnCpu:
    """The real encoder on a CPU, in the place of a logical GPU's."""

    device: DeviceInfo

    def __call__(self, settings):
        from danbooru_index.pipeline.worker_model import load_encoder

        return load_encoder(replace(settings, device="cpu", precision="fp32", threads=1))


@dataclass(frozen=True)
class Made:
    """A factory that calls a function, on whatever device the worker finds."""

    function: Callable
    device: None = None

    def __call__(self, settings):
        return self.function(settings)


def light_config(shards, index, model, *, encoder=Light(), address=None, failpoints=(), **options):
    options = {"device": Device.CPU, "precision": Precision.FP32} | options
    return BuildConfig(
        str(shards),
        str(index),
        model=str(model),
        address=address,
        failpoints=tuple(failpoints),
        encoder=encoder,
        **options,
    )


def rebuilt(config, shard_rows=60):
    """The report of a rebuild of a dump, which stands in the place of the shards."""
    from danbooru_index.pipeline.rebuild import RebuildConfig, rebuild

    return rebuild(RebuildConfig((config.shards,), config, shard_rows=shard_rows))[0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards")
    parser.add_argument("index")
    parser.add_argument("model")
    parser.add_argument("--address")
    parser.add_argument("--failpoint", action="append", default=[])
    parser.add_argument(
        "--fragments", type=int, default=16, help="compact a table of as many small fragments"
    )
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--log", default="")
    parser.add_argument(
        "--lease", type=float, help="seconds that an owner on an object store holds an index"
    )
    parser.add_argument("--real", action="store_true", help="the real encoder")
    parser.add_argument("--gpus", action="store_true", help="a logical GPU for each encoder")
    parser.add_argument("--slow", default="", metavar="FILE", help="one encoder is slow")
    parser.add_argument(
        "--together", type=int, default=0, help="encoders that begin before any ends"
    )
    parser.add_argument(
        "--hold", default="", metavar="FILE", help="no call ends before it is there"
    )
    parser.add_argument("--hold-s", type=float, default=HOLD_S, help="but after so many seconds")
    parser.add_argument("--rebuild", action="store_true", help="SHARDS is a dump")
    parser.add_argument("--no-backups", action="store_true", help="late shards are waited for")
    parser.add_argument("--wait-for-nodes", type=float, default=60.0, metavar="SECONDS")
    arguments = parser.parse_args()
    log_to_stderr()
    from danbooru_index.index import compaction
    from danbooru_index.pipeline import watch
    from danbooru_index.pipeline.build import build
    from danbooru_index.storage import lease

    if arguments.no_backups:
        watch.Watch._to_offer = lambda _: {}
    compaction.FRAGMENTS = arguments.fragments
    lease.LEASE_S = arguments.lease or lease.LEASE_S
    device = SIMULATED if arguments.gpus else None
    encoder = Light(
        arguments.delay,
        arguments.log,
        device=device,
        slow=arguments.slow,
        together=arguments.together,
        hold=arguments.hold,
        hold_s=arguments.hold_s,
    )
    if arguments.real:
        encoder = OnCpu(device) if device else None
    points = [parse_failpoint(word) for word in arguments.failpoint]
    try:
        config = light_config(
            arguments.shards, arguments.index, arguments.model,
            encoder=encoder, address=arguments.address, failpoints=points,
            device=Device.CUDA if device else Device.CPU,
            wait_for_nodes_s=arguments.wait_for_nodes,
        )  # fmt: skip
        report = rebuilt(config) if arguments.rebuild else build(config)
    except DanbooruIndexError as error:
        print(f"danbooru-index: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report.to_dict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import light

    sys.exit(light.main())
