"""Verbs that look after an index: status, diff, verify, rollback, prune."""

from __future__ import annotations

import argparse
from typing import Any, TextIO

from danbooru_index.cli.options import print_fields, print_report, verb
from danbooru_index.errors import UsageError


def add_status(verbs: Any) -> None:
    """The verb `status`."""
    summary = "What is published, what is unfinished, by which model."
    parser = verb(verbs, "status", _status, summary, "danbooru-index status my-index")
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "--history", action="store_true", help="the rebuilds: when, what changed, how fast"
    )


def _status(arguments: argparse.Namespace, out: TextIO) -> int:
    if arguments.history:
        return _history(arguments, out)
    from danbooru_index.index.status import status

    print_report(status(arguments.index), arguments.json, out)
    return 0


def _history(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.catalog import IndexRoot
    from danbooru_index.index.history import history

    root = IndexRoot(arguments.index)
    root.require()
    runs = history(root)
    head = f"{root.path}: {len(runs):,} rebuilds noted"
    fields = {"index": str(root.path), "runs": [run.to_dict() for run in runs]}
    print_fields(fields, "\n".join([head, *(run.to_line() for run in runs)]), arguments, out)
    return 0


def add_diff(verbs: Any) -> None:
    """The verb `diff`."""
    summary = "What changed from one generation to another: tags, texts, categories, posts."
    parser = verb(verbs, "diff", _diff, summary, "danbooru-index diff my-index")
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "old", nargs="?", metavar="OLD", help="a generation (default: published before NEW)"
    )
    parser.add_argument("new", nargs="?", metavar="NEW", help="(default: the published one)")
    parser.add_argument(
        "--limit",
        type=int,
        default=10,
        metavar="N",
        help="lines of each kind (default %(default)s); --json has all",
    )


def _diff(arguments: argparse.Namespace, out: TextIO) -> int:
    if arguments.limit < 0:
        raise UsageError(f"--limit must not be negative, it is {arguments.limit}")
    from danbooru_index.index.difference import diff

    found = diff(arguments.index, arguments.old, arguments.new)
    print_fields(found.to_dict(), found.to_text(arguments.limit), arguments, out)
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
