"""A full rebuild for a schedule: prepare -> build -> check -> publish -> prune."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from danbooru_index.config import BuildConfig
from danbooru_index.errors import StorageError, UsageError
from danbooru_index.evaluation.canaries import check_queries
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.publish import prune
from danbooru_index.ingest.prepare import prepare
from danbooru_index.ingest.prepare_report import PrepareReport
from danbooru_index.pipeline.build import build_owned, exit_code
from danbooru_index.pipeline.guards import GuardError, GuardLimits, Guards
from danbooru_index.pipeline.rebuild_report import changes_between, complete_report
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.prepare_config import DumpConfig, PrepareConfig
from danbooru_index.storage.base import Storage


@dataclass(frozen=True, slots=True)
class RebuildConfig:
    """What `rebuild` is asked to do; `build.shards` is filled in. `reuse`: only texts that changed
    are encoded. `guards`: what a new generation must hold against the published one.
    """

    inputs: tuple[str, ...]
    build: BuildConfig
    keep: int = 3
    reuse: bool = True
    guards: GuardLimits = field(default_factory=GuardLimits)
    shard_rows: int = 4096
    translations: str | tuple[str, ...] | None = None
    dump: DumpConfig = field(default_factory=DumpConfig)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UsageError(f"--keep must be at least 1, not {self.keep}")


def rebuild(config: RebuildConfig) -> tuple[BuildReport, int]:
    """Prepare the inputs into `INDEX/input`, build, publish, prune; return the report and the exit
    code.

    The published generation stays as it is unless every check and guard of the new one passes;
    `GuardError` where one does not.
    """
    root = IndexRoot(config.build.index)
    if config.guards.queries is not None:
        check_queries(config.guards.queries)
    root.create()
    settings = replace(config.build, shards=str(root.path / "input"), reuse=config.reuse)
    with root.path.owned():
        prepared = _prepare_beside(config, root.path / "input")
        guards = Guards(root, config.guards, prepared, settings.model, settings.device)
        before = published_id(root)
        try:
            report = build_owned(settings, root, guards)
        except GuardError:
            prune(root, config.keep)  # what guards kept back before would fill the disk
            raise
        report.changes = changes_between(config.build.index, before, report.generation)
        deleted = prune(root, config.keep)
        if deleted:
            report.notes.append(f"pruned {', '.join(deleted)}")
        complete_report(report, prepared, guards, root.path / "generations" / report.generation)
    return report, exit_code(report, settings)


def published_id(root: IndexRoot) -> str:
    """What is published; empty where nothing is, or it cannot be read."""
    with contextlib.suppress(StorageError):
        return root.current_id() or ""
    return ""


def _prepare_beside(config: RebuildConfig, place: Storage) -> PrepareReport:
    """The shards, at their place with the index; for an object store made beside it and uploaded,
    what is there of another dump deleted.
    """
    if (folder := place.local_path()) is not None:
        return _prepare_in(config, folder)
    with tempfile.TemporaryDirectory(prefix="danbooru-index-") as scratch:
        made = Path(scratch) / "input"
        report = _prepare_in(config, made)
        there = place.sizes()
        files = {path.name: path for path in sorted(made.iterdir()) if path.is_file()}
        for name, path in files.items():
            # a shard's name holds the digest of its content
            if path.suffix != ".parquet" or there.get(name) != path.stat().st_size:
                (place / name).replace(path.read_bytes())
        for name in there.keys() - files.keys():
            (place / name).delete()
        if report.rejects_file:
            report = replace(report, rejects_file=str(place / Path(report.rejects_file).name))
    return report


def _prepare_in(config: RebuildConfig, folder: Path) -> PrepareReport:
    return prepare(
        PrepareConfig(
            config.inputs,
            str(folder),
            shard_rows=config.shard_rows,
            translations=config.translations,
            strict=config.build.strict,
            max_rejects=config.build.max_rejects,
            dump=config.dump,
        )
    )
