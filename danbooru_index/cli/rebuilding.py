"""The verb that makes an index anew, for a schedule: rebuild."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, TextIO

from danbooru_index.choices import IfRunning
from danbooru_index.cli.building import add_dump_options, build_config, dump_config
from danbooru_index.cli.options import add_model_options, print_report, verb
from danbooru_index.durations import parse_duration
from danbooru_index.prepare_config import RejectLimit

if TYPE_CHECKING:
    from danbooru_index.pipeline.guards import GuardLimits


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
    parser.add_argument(
        "--no-reuse",
        action="store_true",
        help="encode every text, not only those that changed since the last generation",
    )
    _add_guards(parser)
    parser.add_argument(
        "--if-running",
        default="fail",
        metavar="fail|skip",
        help="while another is at work on the index: exit 1, or 0 (default %(default)s)",
    )
    parser.add_argument(
        "--deadline",
        metavar="TIME",
        help="stop after so long, such as 6h, and exit 1; the next run goes on",
    )
    parser.add_argument(
        "--on-finish",
        metavar="COMMAND",
        help="a shell command that gets the run as JSON on stdin, however it ended",
    )
    add_dump_options(parser)
    add_model_options(parser)


def _add_guards(parser: argparse.ArgumentParser) -> None:
    """What a new generation must hold against the published one."""
    parser.add_argument(
        "--max-shrink",
        default="5%",
        metavar="SHARE",
        help="publish no generation with fewer records than that (default %(default)s)",
    )
    parser.add_argument(
        "--max-explanation-loss",
        default="10%",
        metavar="SHARE",
        help="nor with so many points fewer texts that explain their tag (default %(default)s)",
    )
    parser.add_argument(
        "--queries", metavar="FILE", help="known queries, as evaluate reads them, asked before"
    )
    parser.add_argument(
        "--max-quality-loss",
        default=".02",
        metavar="LOSS",
        help="of mAP@10 in the answers to --queries (default %(default)s)",
    )
    parser.add_argument(
        "--publish-anyway", action="store_true", help="publish what a guard kept back"
    )


def _guard_limits(arguments: argparse.Namespace) -> GuardLimits:
    from danbooru_index.pipeline.guards import GuardLimits, parse_share

    shares = {
        name: parse_share(getattr(arguments, name), f"--{name.replace('_', '-')}")
        for name in ("max_shrink", "max_explanation_loss", "max_quality_loss")
    }
    # without a limit of the user's, rejects decide the exit code only
    asked = None if arguments.max_rejects is None else RejectLimit.parse(arguments.max_rejects)
    return GuardLimits(
        queries=arguments.queries,
        max_rejects=asked,
        publish_anyway=arguments.publish_anyway,
        **shares,
    )


def _rebuild(arguments: argparse.Namespace, out: TextIO) -> int:
    deadline = arguments.deadline
    from danbooru_index.pipeline.rebuild import RebuildConfig
    from danbooru_index.pipeline.unattended import Unattended, run_unattended

    config = RebuildConfig(
        inputs=tuple(arguments.inputs),
        build=build_config(arguments, ""),
        keep=arguments.keep,
        reuse=not arguments.no_reuse,
        guards=_guard_limits(arguments),
        shard_rows=arguments.shard_rows,
        translations=tuple(arguments.translations),
        dump=dump_config(arguments),
    )
    report, run = run_unattended(
        Unattended(
            config,
            IfRunning.parse(arguments.if_running),
            None if deadline is None else parse_duration(deadline, "--deadline"),
            arguments.on_finish,
        )
    )
    if report is not None:
        print_report(report, arguments.json, out)
    return run.exit_code
