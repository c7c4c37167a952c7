"""A full rebuild for a schedule: prepare -> build -> check -> publish -> prune."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from danbooru_index.config import BuildConfig
from danbooru_index.errors import UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.publish import prune
from danbooru_index.ingest.prepare import prepare
from danbooru_index.pipeline.build import build_owned, exit_code
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.prepare_config import DumpConfig, PrepareConfig


@dataclass(frozen=True, slots=True)
class RebuildConfig:
    """What `rebuild` is asked to do; `build.shards` is filled in."""

    inputs: tuple[str, ...]
    build: BuildConfig
    keep: int = 3
    shard_rows: int = 4096
    translations: str | tuple[str, ...] | None = None
    dump: DumpConfig = field(default_factory=DumpConfig)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UsageError(f"--keep must be at least 1, not {self.keep}")


def rebuild(config: RebuildConfig) -> tuple[BuildReport, int]:
    """Prepare the inputs into `INDEX/input`, build, publish, prune; return the report and the exit
    code.

    The published generation stays as it is unless every check of the new one passes.
    """
    root = IndexRoot(config.build.index)
    if (folder := root.path.local_path()) is None:
        raise UsageError(
            f"{root.path}: rebuild keeps its shards with the index, on a file system; use prepare"
            " and build"
        )
    root.create()
    shards = str(folder / "input")
    settings = replace(config.build, shards=shards)
    with root.path.owned():
        prepared = prepare(
            PrepareConfig(
                config.inputs,
                shards,
                shard_rows=config.shard_rows,
                translations=config.translations,
                strict=config.build.strict,
                max_rejects=config.build.max_rejects,
                dump=config.dump,
            )
        )
        report = build_owned(settings, root)
        deleted = prune(root, config.keep)
    counted = f"prepared {prepared.records:,} of {prepared.read:,} records"
    report.notes[:0] = [*prepared.understood_notes, counted]
    report.rejected.update(prepared.rejected)
    report.read += sum(prepared.rejected.values())
    report.rejects_file = prepared.rejects_file or report.rejects_file
    if deleted:
        report.notes.append(f"pruned {', '.join(deleted)}")
    return report, exit_code(report, settings)
