"""The verb that asks an index: search."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, TextIO

from danbooru_index.choices import Device, Mode
from danbooru_index.cli.options import add_query_options, asked_fusion, verb
from danbooru_index.config import Weights

if TYPE_CHECKING:
    from danbooru_index.search.tag_index import TagIndex


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
        "--nsfw",
        action="store_true",
        help="also answer with tags that are not safe for work (--resolve always knows them)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say of each hit why it stands where it stands"
    )
    parser.add_argument(
        "--resolve",
        action="store_true",
        help="QUERY is a prompt or a list of names: say which are tags, aliases, nearly tags",
    )


def _search(arguments: argparse.Namespace, out: TextIO) -> int:
    asked = _asked(arguments)
    from danbooru_index.search.query import query_lines
    from danbooru_index.search.tag_index import TagIndex

    answer = _names if arguments.resolve else _hits
    with TagIndex.open(
        arguments.index, model=arguments.model, device=Device.parse(arguments.device)
    ) as index:
        failed, headed = 0, arguments.json
        queries = (
            query_lines(sys.stdin.buffer) if arguments.query == "-" else [(arguments.query, "")]
        )
        for query, problem in queries:
            if problem:
                failed = 1
                print(f"danbooru-index: {problem}", file=sys.stderr)
                continue
            document, text = answer(index, query, asked)
            if not headed:
                headed = True
                print(f"{arguments.index}, by {index.model}", file=out)
            shown = json.dumps(document, ensure_ascii=False) if arguments.json else text
            print(shown, file=out, flush=True)
    return failed


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `TagIndex.search`; raise `UsageError`."""
    return {
        "mode": Mode.parse(arguments.mode),
        "weights": Weights.parse(arguments.weights),
        "fusion": asked_fusion(arguments),
        "limit": arguments.limit,
        "category": arguments.category,
        "min_post_count": arguments.min_post_count,
        "nsfw": arguments.nsfw,
        "explain": arguments.explain,
    }


def _hits(index: TagIndex, query: str, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from danbooru_index.search.hit import format_hits

    hits = index.search(query, **asked)
    manifest = index.generation.manifest
    document = {
        "query": query,
        "mode": index.answering_mode(asked["mode"]).value,
        "model": manifest.model.name,
        "model_id": manifest.model.id,
        "nsfw_marks": manifest.nsfw_marks,
        "hits": [hit.to_dict() for hit in hits],
        "parts": [part.to_dict() for part in hits.parts],
    }
    return document, format_hits(query, hits)


def _names(index: TagIndex, names: str, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from danbooru_index.search.resolve import format_resolved

    filters = {name: asked[name] for name in ("category", "min_post_count")}
    resolved = index.resolve(names, **filters)
    document = {"query": names, "names": [one.to_dict() for one in resolved]}
    return document, format_resolved(resolved)
