"""danbooru_index: a Danbooru tag dump -> a searchable BGE-M3 index, by a distributed Ray job.

The flow, one room a step: `ingest` (dumps -> shards), `model` and `cluster` (what encodes, and on
what), `pipeline` (a build), `index` (what it leaves), `search`. Each room's docstring says more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danbooru_index.config import BuildConfig
    from danbooru_index.errors import DanbooruIndexError
    from danbooru_index.ingest.prepare import prepare
    from danbooru_index.pipeline.build import build
    from danbooru_index.prepare_config import PrepareConfig
    from danbooru_index.search.hit import Hit
    from danbooru_index.search.tag_index import TagIndex

__version__ = "0.1.0"
__all__ = [
    "BuildConfig",
    "DanbooruIndexError",
    "Hit",
    "PrepareConfig",
    "TagIndex",
    "build",
    "prepare",
]

_HOMES = {
    "BuildConfig": "config",
    "PrepareConfig": "prepare_config",
    "DanbooruIndexError": "errors",
    "Hit": "search.hit",
    "TagIndex": "search.tag_index",
    "build": "pipeline.build",
    "prepare": "ingest.prepare",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is used, so that `import danbooru_index` is instant."""
    if name in _HOMES:
        return getattr(import_module(f"danbooru_index.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
