"""Verbs that make an index: prepare and build."""

from __future__ import annotations

import argparse
from typing import Any, TextIO

from danbooru_index.choices import Device, Precision, Site
from danbooru_index.cli.options import add_model_options, add_rejects, print_report, verb
from danbooru_index.config import BuildConfig
from danbooru_index.durations import parse_duration
from danbooru_index.prepare_config import DEFAULT_SHARD_ROWS, DumpConfig, PrepareConfig, RejectLimit


def add_prepare(verbs: Any) -> None:
    """The verb `prepare`."""
    parser = verb(
        verbs,
        "prepare",
        _prepare,
        "Write tag dumps (.jsonl, .json, .csv, .tsv, .txt, .parquet, .sqlite, .xlsx, also .gz, .zst"
        " and .zip; files or folders) as Parquet shards, and show what was understood.",
        "danbooru-index prepare danbooru.csv --translations zh.csv --out shards/",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--dry-run", action="store_true", help="read everything, show what it is, write nothing"
    )
    add_dump_options(parser)
    add_rejects(parser)


def add_dump_options(parser: argparse.ArgumentParser) -> None:
    """How a dump is read and cut, for `prepare` and `rebuild`."""
    parser.add_argument(
        "--shard-rows",
        type=int,
        default=DEFAULT_SHARD_ROWS,
        metavar="N",
        help="(default %(default)s)",
    )
    many: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument(
        "--translations",
        metavar="FILE",
        help="tags and their explanations, two columns in any order (may be given several times)",
        **many,
    )
    parser.add_argument(
        "--map",
        metavar="FIELD=COLUMN,...",
        help=(
            "what columns hold that are not recognised: tag=name,explanation=cn_name; a place"
            " (tag=1) where there is no header, field==value for a constant, field=- to leave out;"
            " or a YAML file of these"
        ),
        **many,
    )
    parser.add_argument(
        "--site",
        metavar="NAME",
        help=f"whose category numbers: {'|'.join(site.value for site in Site)}",
    )
    parser.add_argument("--encoding", metavar="NAME", help="of text files (default UTF-8)")
    parser.add_argument("--table", metavar="NAME", help="of a database or a workbook")
    parser.add_argument(
        "--nsfw-tags", metavar="FILE", help="a list of tags that are not safe for work", **many
    )
    _add_nsfw_words(parser)
    parser.add_argument(
        "--accept-unlikely", action="store_true", help="go on where what was understood looks wrong"
    )


def _add_nsfw_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-nsfw-words",
        action="store_true",
        help="do not mark tags of an input without ratings by their words",
    )


def dump_config(arguments: argparse.Namespace) -> DumpConfig:
    """What a command line says of its dumps."""
    return DumpConfig(
        map=tuple(arguments.map),
        site=arguments.site,
        encoding=arguments.encoding,
        table=arguments.table,
        nsfw_tags=tuple(arguments.nsfw_tags),
        nsfw_words=not arguments.no_nsfw_words,
        accept_unlikely=arguments.accept_unlikely,
    )


def _prepare(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.ingest.prepare import prepare

    limit = RejectLimit.parse(arguments.max_rejects or "0")
    report = prepare(
        PrepareConfig(
            tuple(arguments.inputs),
            arguments.out,
            shard_rows=arguments.shard_rows,
            translations=tuple(arguments.translations),
            strict=arguments.strict,
            max_rejects=limit,
            dump=dump_config(arguments),
            dry_run=arguments.dry_run,
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
    _add_nsfw_words(parser)
    add_model_options(parser)


def build_config(arguments: argparse.Namespace, shards: str) -> BuildConfig:
    """What a command line asks a build to do."""
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
        max_rejects=RejectLimit.parse(arguments.max_rejects or "0"),
        address=arguments.address,
        allow_failed_shards=arguments.allow_failed_shards,
        query_instruction=arguments.query_instruction,
        colbert_dim=arguments.colbert_dim,
        min_fidelity=arguments.min_fidelity,
        nsfw_words=not arguments.no_nsfw_words,
        accept_left_out=arguments.accept_left_out,
        wait_for_nodes_s=parse_duration(arguments.wait_for_nodes, "--wait-for-nodes"),
    )


def _build(arguments: argparse.Namespace, out: TextIO) -> int:
    config = build_config(arguments, arguments.shards)
    from danbooru_index.pipeline.build import build, exit_code

    report = build(config)
    print_report(report, arguments.json, out)
    return exit_code(report, config)
