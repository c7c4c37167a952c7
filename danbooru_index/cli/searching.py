"""The verb that asks an index: search."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, TextIO

from danbooru_index.choices import Device, Mode
from danbooru_index.cli.options import add_query_options, asked_fusion, verb
from danbooru_index.config import Weights


def add_search(verbs: Any) -> None:
    """The verb `search`."""
    parser = verb(
        verbs,
        "search",
        _search,
        "Find tags by name and by meaning, in Chinese, English or Japanese.",
        "danbooru-index search my-index 穿水手服的女孩 --limit 5",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "query",
        metavar="QUERY",
        help="`-` reads one query a line from stdin; --json then prints one document a line",
    )
    parser.add_argument("--mode", default="hybrid", metavar="hybrid|lexical|dense|sparse|colbert")
    add_query_options(parser)
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="(default %(default)s)")
    parser.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help="only of this category (may be repeated)",
    )
    parser.add_argument(
        "--min-post-count", type=int, metavar="N", help="only tags with at least N posts"
    )
    parser.add_argument(
        "--nsfw", action="store_true", help="also answer with tags that are not safe for work"
    )


def _search(arguments: argparse.Namespace, out: TextIO) -> int:
    mode, weights = Mode.parse(arguments.mode), Weights.parse(arguments.weights)
    fusion = asked_fusion(arguments)
    from danbooru_index.search.hit import format_hits
    from danbooru_index.search.query import query_lines
    from danbooru_index.search.tag_index import TagIndex

    with TagIndex.open(
        arguments.index, model=arguments.model, device=Device.parse(arguments.device)
    ) as index:
        failed, headed = 0, False
        queries = (
            query_lines(sys.stdin.buffer) if arguments.query == "-" else [(arguments.query, "")]
        )
        for query, problem in queries:
            if problem:
                failed = 1
                print(f"danbooru-index: {problem}", file=sys.stderr)
                continue
            hits = index.search(
                query,
                mode=mode,
                limit=arguments.limit,
                weights=weights,
                fusion=fusion,
                category=arguments.category,
                min_post_count=arguments.min_post_count,
                nsfw=arguments.nsfw,
            )
            if arguments.json:
                manifest = index.generation.manifest
                named = {"model": manifest.model.name, "model_id": manifest.model.id}
                named |= {"nsfw_marks": manifest.nsfw_marks}
                answer = {
                    "query": query,
                    "mode": index.answering_mode(mode).value,
                    **named,
                    "hits": [hit.to_dict() for hit in hits],
                }
                print(json.dumps(answer, ensure_ascii=False), file=out, flush=True)
            else:
                if not headed:
                    headed = True
                    print(f"{arguments.index}, by {index.model}", file=out)
                print(format_hits(query, hits), file=out, flush=True)
    return failed
