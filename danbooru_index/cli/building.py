"""Verbs that make an index: prepare, build, rebuild."""

from __future__ import annotations

import argparse
from typing import Any, TextIO

from danbooru_index.choices import Device, Precision
from danbooru_index.cli.options import add_model_options, add_rejects, print_report, verb
from danbooru_index.config import DEFAULT_SHARD_ROWS, BuildConfig, PrepareConfig, RejectLimit


def add_prepare(verbs: Any) -> None:
    """The verb `prepare`."""
    parser = verb(
        verbs,
        "prepare",
        _prepare,
        "Write tag dumps (.jsonl, .csv, .parquet, also .gz and .zst; files or folders) as Parquet"
        " shards.",
        "danbooru-index prepare danbooru.csv --translations zh.csv --out shards/",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--out", required=True, metavar="DIR")
    _add_dump_options(parser)
    add_rejects(parser)


def _add_dump_options(parser: argparse.ArgumentParser) -> None:
    """How a dump is read and cut, for `prepare` and `rebuild`."""
    parser.add_argument(
        "--shard-rows",
        type=int,
        default=DEFAULT_SHARD_ROWS,
        metavar="N",
        help="(default %(default)s)",
    )
    parser.add_argument(
        "--translations", metavar="FILE", help="CSV, tag,text: explanations for CSV records"
    )


def _prepare(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.ingest.prepare import prepare

    limit = RejectLimit.parse(arguments.max_rejects)
    report = prepare(
        PrepareConfig(
            tuple(arguments.inputs),
            arguments.out,
            shard_rows=arguments.shard_rows,
            translations=arguments.translations,
            strict=arguments.strict,
            max_rejects=limit,
        )
    )
    print_report(report, arguments.json, out)
    return 0 if limit.allows(sum(report.rejected.values()), report.read) else 3


def add_build(verbs: Any) -> None:
    """The verb `build`."""
    parser = verb(
        verbs,
        "build",
        _build,
        "Embed Parquet shards under Ray and publish the index; goes on from completed shards.",
        "danbooru-index build shards/ --index my-index --model BAAI/bge-m3",
    )
    parser.add_argument("shards", metavar="SHARDS", help="a folder, a glob or a Parquet file")
    parser.add_argument("--index", required=True)
    add_model_options(parser)


def _build_config(arguments: argparse.Namespace, shards: str) -> BuildConfig:
    return BuildConfig(
        shards=shards,
        index=arguments.index,
        model=arguments.model,
        device=Device.parse(arguments.device),
        num_gpus=arguments.num_gpus,
        precision=Precision.parse(arguments.precision),
        max_length=arguments.max_length,
        tokens_per_batch=arguments.tokens_per_batch,
        strict=arguments.strict,
        max_rejects=RejectLimit.parse(arguments.max_rejects),
        address=arguments.address,
        allow_failed_shards=arguments.allow_failed_shards,
        query_instruction=arguments.query_instruction,
        colbert_dim=arguments.colbert_dim,
        min_fidelity=arguments.min_fidelity,
    )


def _build(arguments: argparse.Namespace, out: TextIO) -> int:
    config = _build_config(arguments, arguments.shards)
    from danbooru_index.pipeline.build import build, exit_code

    report = build(config)
    print_report(report, arguments.json, out)
    return exit_code(report, config)


def add_rebuild(verbs: Any) -> None:
    """The verb `rebuild`."""
    parser = verb(
        verbs,
        "rebuild",
        _rebuild,
        "Prepare, build, check and publish in one go, then prune; for a schedule.",
        "danbooru-index rebuild /data/danbooru.csv --index my-index --keep 3",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--index", required=True)
    parser.add_argument(
        "--keep", type=int, default=3, metavar="N", help="generations to keep (default %(default)s)"
    )
    _add_dump_options(parser)
    add_model_options(parser)


def _rebuild(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.pipeline.rebuild import RebuildConfig, rebuild

    report, code = rebuild(
        RebuildConfig(
            inputs=tuple(arguments.inputs),
            build=_build_config(arguments, ""),
            keep=arguments.keep,
            shard_rows=arguments.shard_rows,
            translations=arguments.translations,
        )
    )
    print_report(report, arguments.json, out)
    return code
