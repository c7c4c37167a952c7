"""A rebuild that nobody watches: never twice at once, within its time, remembered, and told."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from danbooru_index.choices import IfRunning
from danbooru_index.config import BASELINE_TAGS_PER_SECOND
from danbooru_index.durations import said_duration
from danbooru_index.errors import BuildFailedError, DanbooruIndexError, IndexBusyError, first_line
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.history import RunRecord, history, remember
from danbooru_index.ingest.settled import settled_since
from danbooru_index.log_lines import event
from danbooru_index.pipeline.guards import GuardError
from danbooru_index.pipeline.rebuild import RebuildConfig, published_id, rebuild
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.signals import raise_in

log = logging.getLogger(__name__)

TOLD_S = 60.0  # for `--on-finish`
UNEXPECTED = "ended by an error that nobody expected"  # unless a reason is known


@dataclass(frozen=True, slots=True)
class Unattended:
    """How a scheduled rebuild behaves. `deadline_s`: seconds after which it stops; `on_finish`: a
    shell command that gets the run as JSON on stdin.
    """

    rebuild: RebuildConfig
    if_running: IfRunning = IfRunning.FAIL
    deadline_s: float | None = None
    on_finish: str | None = None


def run_unattended(config: Unattended) -> tuple[BuildReport | None, RunRecord]:
    """Rebuild, note the run in the index's history, and tell of it; the report is None where
    another rebuild is at work and this one was skipped.

    Raises what `rebuild` raises, after that is noted and told.
    """
    began, root = time.time(), IndexRoot(config.rebuild.build.index)
    run, report = RunRecord(str(config.rebuild.build.index), "failed", 1, UNEXPECTED), None
    try:
        with _deadline(config.deadline_s):
            run = replace(run, dump_at=_settled(config.rebuild, root), before=published_id(root))
            report, code = rebuild(config.rebuild)
            run = _done(run, report, code)
    except IndexBusyError as error:
        run = replace(run, message=str(error))
        if config.if_running is IfRunning.FAIL:
            raise
        run = replace(run, outcome="skipped", exit_code=0)
    except DanbooruIndexError as error:
        guards = error.guards if isinstance(error, GuardError) else []
        run = replace(run, message=str(error), exit_code=error.exit_code, guards=guards)
        raise
    except KeyboardInterrupt:
        run = replace(run, message="stopped")
        raise
    finally:
        run = replace(run, at=time.time(), seconds=round(time.time() - began, 3))
        _tell(run, root, config.on_finish)
    return report, run


def _settled(config: RebuildConfig, root: IndexRoot) -> float:
    """When the dump was last changed; said where the last one was newer."""
    folder = root.path.local_path()
    changed = settled_since(config.inputs, None if folder is None else folder.resolve() / "input")
    last = max((run.dump_at for run in history(root) if run.outcome == "published"), default=0.0)
    if changed < last:
        earlier, later = (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(t)) for t in (changed, last)
        )
        log.warning(
            f"the dump is of {earlier}, older than the one that was last published, of {later}",
            extra=event("older_dump", dump_at=changed, last=last),
        )
    return changed


def _done(run: RunRecord, report: BuildReport, code: int) -> RunRecord:
    """The run as its report has it, and what it changed."""
    changed = report.generation != run.before
    run = replace(
        run,
        outcome="published" if changed else "unchanged",
        exit_code=code,
        message="",
        generation=report.generation,
        records=report.records,
        encoded=report.encoded if changed else 0,
        reused=report.reused if changed else 0,
        rejected=sum(report.rejected.values()),
        tags_per_second=round(report.encode_rate, 2),
        ratio=round(report.encode_rate / BASELINE_TAGS_PER_SECOND, 3),
        guards=report.guards,
    )
    if not report.changes:
        return run
    counts = {name: report.changes[name]["count"] for name in ("added", "removed", "other text")}
    return replace(
        run, added=counts["added"], removed=counts["removed"], retexted=counts["other text"]
    )


@contextlib.contextmanager
def _deadline(seconds: float | None) -> Iterator[None]:
    """Stop the block, as Ctrl-C does, after so many seconds: `BuildFailedError`."""
    if seconds is None:
        yield
        return
    hit, ended, lock = threading.Event(), threading.Event(), threading.Lock()
    thread = threading.get_ident()

    def stop() -> None:
        with lock:
            if not ended.is_set():
                hit.set()
                raise_in(thread, KeyboardInterrupt)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (KeyboardInterrupt, DanbooruIndexError):
        if not hit.is_set():
            raise
        raise BuildFailedError(
            f"stopped after {said_duration(seconds)} (--deadline); what is done is kept: run the"
            " same command to go on"
        ) from None
    finally:
        with lock:
            ended.set()
        timer.cancel()


def _tell(run: RunRecord, root: IndexRoot, command: str | None) -> None:
    """The run in one line, in the history, and to `--on-finish`; none of it is a reason to fail."""
    log.info(run.to_text(), extra=event("rebuild", **run.to_dict()))
    try:
        if run.outcome != "skipped" and (root.path / "generations").is_folder():
            remember(root, run)
    except (DanbooruIndexError, OSError) as error:
        log.warning(f"the run is not in the history: {first_line(error)}")
    if command is None:
        return
    document = json.dumps(run.to_dict(), ensure_ascii=False)
    try:
        told = subprocess.run(
            ["/bin/sh", "-c", command], input=document, text=True, timeout=TOLD_S, check=False
        )
        problem = f"ended with {told.returncode}" if told.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        problem = first_line(error)
    if problem:
        log.warning(f"--on-finish {problem}: {command}")
