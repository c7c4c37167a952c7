"""Verbs that look after an index: status, verify, rollback, prune."""

from __future__ import annotations

import argparse
from typing import Any, TextIO

from danbooru_index.cli.options import print_fields, print_report, verb


def add_status(verbs: Any) -> None:
    """The verb `status`."""
    summary = "What is published, what is unfinished, by which model."
    verb(verbs, "status", _status, summary, "danbooru-index status my-index").add_argument(
        "index", metavar="INDEX"
    )


def _status(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.status import status

    print_report(status(arguments.index), arguments.json, out)
    return 0


def add_verify(verbs: Any) -> None:
    """The verb `verify`."""
    summary = "Reread every row of the published generation: counts, digests, non-finite values."
    verb(verbs, "verify", _verify, summary, "danbooru-index verify my-index").add_argument(
        "index", metavar="INDEX"
    )


def _verify(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.status import verify

    report = verify(arguments.index)
    print_report(report, arguments.json, out)
    return 1 if report.problems else 0


def add_rollback(verbs: Any) -> None:
    """The verb `rollback`."""
    summary = "Publish the generation before the current one again."
    verb(verbs, "rollback", _rollback, summary, "danbooru-index rollback my-index").add_argument(
        "index", metavar="INDEX"
    )


def _rollback(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.catalog import IndexRoot
    from danbooru_index.index.publish import rollback

    root = IndexRoot(arguments.index)
    root.require()
    with root.path.owned():
        generation = rollback(root)
    print_fields(
        {"generation": generation.id},
        f"{root.path}: generation {generation.id} is published again",
        arguments,
        out,
    )
    return 0


def add_prune(verbs: Any) -> None:
    """The verb `prune`."""
    summary = (
        "Delete old generations; never the published one, nor one replaced less than 15 minutes"
        " ago."
    )
    parser = verb(verbs, "prune", _prune, summary, "danbooru-index prune my-index --keep 3")
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "--keep", type=int, default=3, metavar="N", help="generations to keep (default %(default)s)"
    )


def _prune(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.catalog import IndexRoot
    from danbooru_index.index.publish import prune

    root = IndexRoot(arguments.index)
    root.require()
    with root.path.owned():
        deleted = prune(root, arguments.keep)
    said = (
        f"{root.path}: deleted {', '.join(deleted)}"
        if deleted
        else f"{root.path}: nothing to delete"
    )
    print_fields({"deleted": deleted}, said, arguments, out)
    return 0
