"""The build: read the input, plan, resume, encode, seal and publish, report.

One shard travels as one row. The completion records, not Ray, decide what is done; see
`index.completion`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from danbooru_index.cluster.session import cluster_address, ray_session
from danbooru_index.config import BuildConfig
from danbooru_index.errors import BuildFailedError, StorageError
from danbooru_index.failpoints import armed, reach
from danbooru_index.index.catalog import Guard, IndexRoot
from danbooru_index.ingest.shard_files import find_parquet
from danbooru_index.pipeline.driver import encode
from danbooru_index.pipeline.finish import finish
from danbooru_index.pipeline.plan import make_plan
from danbooru_index.pipeline.reading import read_input
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.pipeline.reporting import finished_report, published_report
from danbooru_index.pipeline.resume import find_work
from danbooru_index.progress import StartUp
from danbooru_index.versions import check_versions


def build(config: BuildConfig) -> BuildReport:
    """Build (or go on building) an index of the shards and publish it; return the report.

    Raises `UsageError`, `InputError`, `ModelError`, `DeviceError`, `ClusterError` or `StorageError`
    before any work, `BuildFailedError` when shards failed or a check did. Whatever ends it, the
    same call goes on from the completed shards.
    """
    check_versions()
    root = IndexRoot(config.index)
    find_parquet(config.shards)  # before anything is made for a path that was mistyped
    root.create()
    with root.path.owned():
        return build_owned(config, root)


def build_owned(config: BuildConfig, root: IndexRoot, guard: Guard | None = None) -> BuildReport:
    """`build`, for a caller that owns the index already; `guard`: called before a generation is
    published, raises where it must not be.
    """
    started = time.monotonic()
    with StartUp() as start_up, _told(config):
        reading = read_input(config, start_up)
        start_up.step("starting Ray" if cluster_address(config.address) is None else "joining Ray")
        with ray_session(config.address) as inherited, armed(config.failpoints):
            plan = make_plan(config, started, reading, root, start_up, inherited=inherited)
            work = find_work(plan, root, guard)
            if work.finished:
                return finished_report(plan, work)
            start_up.step("loading the model in its actors")
            outcome = encode(plan, work, start_up)
            reach("build.encoded")
            sealed = finish(plan, root, work, outcome, guard)
            return published_report(plan, work, outcome, sealed)


@contextlib.contextmanager
def _told(config: BuildConfig) -> Iterator[None]:
    """A stop and an error of the system, in this project's words."""
    try:
        yield
    except KeyboardInterrupt:
        raise BuildFailedError(
            "stopped; completed shards are kept: run the same command to go on"
        ) from None
    except OSError as error:
        raise StorageError(f"{error.filename or config.index}: {error.strerror or error}") from None


def exit_code(report: BuildReport, config: BuildConfig) -> int:
    """0, or 3 where records or shards were left out beyond `--max-rejects`, unless that is accepted
    (`--accept-left-out`).
    """
    if config.accept_left_out:
        return 0
    rejected = sum(report.rejected.values())
    return 3 if report.shards.failed or not config.max_rejects.allows(rejected, report.read) else 0
