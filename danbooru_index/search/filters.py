"""Which rows a filter lets through: a mask, and Lance's form. Values are never parsed."""

from __future__ import annotations

import difflib
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

import numpy as np

from danbooru_index.config import Filter
from danbooru_index.errors import UsageError
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.search.retriever import Allowed

if TYPE_CHECKING:
    import pyarrow.compute as pc

SHOWN_CATEGORIES = 20


def allowed(files: SearchFiles, wanted: Filter) -> Allowed:
    """Apply a filter to a generation: once for many searches.

    Raises `UsageError` for a category that no record has.
    """
    return files.kept(wanted, lambda: _allowed(files, wanted))


def _allowed(files: SearchFiles, wanted: Filter) -> Allowed:
    mask = np.ones(files.rows, dtype=bool)
    if not wanted.nsfw:
        mask &= ~files.nsfw
    if wanted.categories:
        asked = np.zeros(len(files.category_names), dtype=bool)  # by place
        asked[_places(files.category_names, wanted)] = True
        mask &= asked[files.categories]
    if wanted.min_post_count is not None:
        mask &= files.posts >= wanted.min_post_count
    return Allowed(mask, wanted)


def _places(known: list[str], wanted: Filter) -> list[int]:
    """The numbers of the categories asked for."""
    places = {name: place for place, name in enumerate(known)}
    for name in wanted.categories:
        if name not in places:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            listed = ", ".join(sorted(known)[:SHOWN_CATEGORIES])
            raise UsageError(
                f"--category {name!r}: no record has it; {meant}categories here: {listed}"
            )
    return [places[name] for name in wanted.categories]


def expression(wanted: Filter) -> pc.Expression | None:
    """The filter as Lance takes it: typed, on three columns, never text."""
    import pyarrow.compute as pc

    terms = [] if wanted.nsfw else [pc.equal(pc.field("nsfw"), pc.scalar(False))]
    if wanted.categories:
        terms.append(pc.field("category").isin(list(wanted.categories)))
    if wanted.min_post_count is not None:
        terms.append(pc.field("post_count") >= pc.scalar(wanted.min_post_count))
    return reduce(and_, terms) if terms else None
