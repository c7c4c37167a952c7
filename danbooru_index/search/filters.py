"""Which rows a filter lets through: a mask, and Lance's form. Values are never parsed."""

from __future__ import annotations

from functools import reduce
from operator import and_

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danbooru_index.config import Filter
from danbooru_index.errors import UsageError
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.retriever import Allowed


def allowed(reader: GenerationReader, wanted: Filter) -> Allowed:
    """Apply a filter to a generation. Raises `UsageError` for a category that no record has."""
    known = reader.known
    _check_categories(known, wanted)
    mask = np.ones(reader.rows, dtype=bool)
    if not wanted.nsfw:
        mask &= ~np.asarray(known["nsfw"].to_numpy(), dtype=bool)
    if wanted.categories:
        mask &= pc.is_in(known["category"], pa.array(wanted.categories, pa.string())).to_numpy()
    if wanted.min_post_count is not None:
        enough = pc.greater_equal(known["post_count"], pa.scalar(wanted.min_post_count, pa.int64()))
        mask &= pc.fill_null(enough, False).to_numpy()
    return Allowed(mask, _expression(wanted))


def _check_categories(known: pa.Table, wanted: Filter) -> None:
    if not wanted.categories:
        return
    categories = set(pc.unique(known["category"]).to_pylist())
    if unknown := [name for name in wanted.categories if name not in categories]:
        listed = ", ".join(sorted(categories)[:20])
        raise UsageError(f"--category {unknown[0]!r}: no record has it; categories here: {listed}")


def _expression(wanted: Filter) -> pc.Expression | None:
    """Typed, on these three columns, never text."""
    terms = [] if wanted.nsfw else [pc.equal(pc.field("nsfw"), pc.scalar(False))]
    if wanted.categories:
        terms.append(pc.field("category").isin(list(wanted.categories)))
    if wanted.min_post_count is not None:
        terms.append(pc.field("post_count") >= pc.scalar(wanted.min_post_count))
    return reduce(and_, terms) if terms else None
