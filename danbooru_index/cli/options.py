"""What several verbs share: how a verb is added, common options, how a report is printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TextIO

from danbooru_index.config import DEFAULT_MAX_LENGTH, DEFAULT_MIN_FIDELITY, Fusion

Command = Callable[[argparse.Namespace, TextIO], int]


def verb(
    verbs: Any, name: str, command: Command, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a verb: its help with an example, and the function that runs it."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command, verb=name)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def add_rejects(parser: argparse.ArgumentParser) -> None:
    """How many rejected records are too many."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop with 1 at rejected records, before anything is made",
    )
    parser.add_argument(
        "--max-rejects",
        metavar="N|P%",
        help="up to this many rejected records (or this share) exit 0 instead of 3 (default 0)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `build` and `rebuild` share."""
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        help="hub name or folder (default BAAI/bge-m3 on a GPU, else m3-mini)",
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="use at most N GPUs (default all)"
    )
    parser.add_argument("--precision", default="auto", metavar="auto|fp32|bf16|fp16")
    parser.add_argument(
        "--max-length",
        type=int,
        default=DEFAULT_MAX_LENGTH,
        metavar="N",
        help="tokens per text (default %(default)s)",
    )
    parser.add_argument(
        "--tokens-per-batch",
        type=int,
        metavar="N",
        help="tokens a device call (default: from memory)",
    )
    parser.add_argument(
        "--colbert-dim",
        type=int,
        metavar="N",
        help="project ColBERT vectors to N values (default: in full)",
    )
    parser.add_argument(
        "--min-fidelity",
        type=float,
        default=DEFAULT_MIN_FIDELITY,
        metavar="SHARE",
        help=(
            "refuse a projection that finds less than this share of the full top 10 again (default"
            " %(default)s)"
        ),
    )
    parser.add_argument(
        "--query-instruction",
        default="",
        metavar="TEXT",
        help="put before every query (default none)",
    )
    _add_running_options(parser)
    add_rejects(parser)


def _add_running_options(parser: argparse.ArgumentParser) -> None:
    """Where a build runs, and how it ends."""
    parser.add_argument(
        "--address", metavar="RAY", help="a running Ray cluster, such as auto (default: start one)"
    )
    parser.add_argument(
        "--wait-for-nodes",
        default="30m",
        metavar="TIME",
        help="how long to do without a node that can work (default %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        default="text",
        metavar="text|json",
        help="lines on stderr as text, or one JSON object each (default %(default)s)",
    )
    parser.add_argument(
        "--accept-left-out",
        action="store_true",
        help="end with 0 instead of 3: for schedulers, which run a job that failed again",
    )
    parser.add_argument(
        "--allow-failed-shards", action="store_true", help="publish without failed shards, exit 3"
    )


def add_query_options(parser: argparse.ArgumentParser) -> None:
    """What verbs that ask an index share."""
    parser.add_argument(
        "--weights",
        default="0.4,0.2,0.4",
        metavar="D,S,C",
        help="of a hybrid score (default %(default)s)",
    )
    for name, what in (
        ("popularity", "log10(posts + 1)"),
        ("transliteration", "the square of how alike names sound"),
    ):
        parser.add_argument(
            f"--{name}",
            type=float,
            default=getattr(Fusion(), name),
            metavar="W",
            help=f"what {what} counts beside that score (default %(default)s; 0: nothing)",
        )
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="where the model that built the index is now"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")


def asked_fusion(arguments: argparse.Namespace) -> Fusion:
    """What a command line says of names and posts."""
    return Fusion(popularity=arguments.popularity, transliteration=arguments.transliteration)


def print_report(report: Any, as_json: bool, out: TextIO) -> None:
    """A report as text, or as one JSON document."""
    print(
        json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_text(), file=out
    )


def print_fields(
    fields: dict[str, Any], text: str, arguments: argparse.Namespace, out: TextIO
) -> None:
    """Fields as one JSON document, or what a person is told instead."""
    print(json.dumps(fields, ensure_ascii=False) if arguments.json else text, file=out)
