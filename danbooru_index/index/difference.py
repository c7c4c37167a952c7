"""What changed from one generation to another: tags, their texts, categories and posts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danbooru_index.errors import StorageError, UsageError
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.reader import GenerationReader

COLUMNS = ["id", "tag", "text", "category", "post_count"]
LINES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """From the generation `old` to `new`. Records are the same where their tag is, or, without a
    tag, their id. Lists are in the order of posts, most first; `moved`: whose posts changed, the
    largest change first.

    `added`, `removed`: id, tag, category, post_count; `texts`, `categories`, `moved`: id, tag, old
    and new value.
    """

    index: str
    old: Generation
    new: Generation
    added: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    moved: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "old": _described(self.old),
            "new": _described(self.new),
            "added": self.added,
            "removed": self.removed,
            "text": self.texts,
            "category": self.categories,
            "post_count": self.moved,
        }

    def to_text(self, limit: int = LINES_SHOWN) -> str:
        lines = [f"{self.index}: {_in_words(self.old)} -> {_in_words(self.new)}"]
        for name, found in (("added", self.added), ("removed", self.removed)):
            lines.append(f"{name}: {len(found):,}")
            lines += [
                f"  {one['tag'] or one['id']} ({one['category'] or 'no category'}{_posts(one)})"
                for one in found[:limit]
            ]
            lines += _more(found, limit)
        for name, found in (("other text", self.texts), ("other category", self.categories)):
            lines.append(f"{name}: {len(found):,}")
            lines += [
                f"  {one['tag'] or one['id']}: {one['old']} -> {one['new']}"
                for one in found[:limit]
            ]
            lines += _more(found, limit)
        lines.append(f"other number of posts: {len(self.moved):,}")
        lines += [
            f"  {one['tag'] or one['id']}: {one['new'] - one['old']:+,}"
            f" ({one['old']:,} -> {one['new']:,})"
            for one in self.moved[:limit]
        ]
        return "\n".join(lines + _more(self.moved, limit))


def _more(found: list[dict[str, Any]], limit: int) -> list[str]:
    return [f"  ... and {len(found) - limit:,} more (--limit N)"] if len(found) > limit else []


def _posts(one: dict[str, Any]) -> str:
    return "" if one["post_count"] is None else f", {one['post_count']:,} posts"


def _described(generation: Generation) -> dict[str, Any]:
    seal = generation.manifest.need_seal()
    return {"generation": generation.id, "sealed_at": seal.sealed_at, "records": seal.records}


def _in_words(generation: Generation) -> str:
    seal = generation.manifest.need_seal()
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(seal.sealed_at))
    return f"{generation.id} ({when}, {seal.records:,} records)"


def diff(path: str, old: str | None = None, new: str | None = None) -> Difference:
    """Compare two finished generations of the index at `path`, by id; without ids the published one
    with the one that was published before.

    Raises `StorageError` where there is no index or nothing to compare with, `UsageError` for an id
    that it does not hold.
    """
    root = IndexRoot(path)
    root.require()
    known = {one.id: one for one in root.generations() if one.manifest.sealed}
    for given in (old, new):
        if given is not None and given not in known:
            raise UsageError(
                f"{path}: no finished generation {given}; there are {', '.join(known) or 'none'}"
            )
    later = known[new] if new is not None else root.current()
    before = [one for one in root.published_before() if one in known and one != later.id]
    before = before or [one for one in known if one < later.id]
    if old is None and not before:
        raise StorageError(f"{path}: there is no generation before {later.id} to compare with")
    earlier = known[old] if old is not None else known[before[-1]]
    return compare_generations(path, earlier, later)


def compare_generations(path: str, old: Generation, new: Generation) -> Difference:
    """The difference of two finished generations of one index."""
    tables = [_keyed(GenerationReader(one).columns(COLUMNS)) for one in (old, new)]
    both = tables[0].join(
        tables[1], keys="key", join_type="inner", left_suffix="_old", right_suffix="_new"
    )
    both = both.sort_by([("post_count_new", "descending"), ("key", "ascending")])
    moved = [one for one in _changed(both, "post_count") if None not in (one["old"], one["new"])]
    return Difference(
        path,
        old,
        new,
        added=_only_in(tables[1], tables[0]),
        removed=_only_in(tables[0], tables[1]),
        texts=_changed(both, "text"),
        categories=_changed(both, "category"),
        moved=sorted(moved, key=lambda one: -abs(one["new"] - one["old"])),
    )


def _keyed(table: pa.Table) -> pa.Table:
    """With a column `key`, the tag or else the id; of several alike the later ones are numbered."""
    key = pc.if_else(pc.equal(table["tag"], ""), table["id"], table["tag"]).combine_chunks()
    codes = key.dictionary_encode().indices.to_numpy()
    if len(codes) and int(codes.max()) + 1 < len(codes):
        counted: dict[int, int] = {}
        names = key.to_pylist()
        often = np.bincount(codes) > 1
        for row in np.flatnonzero(often[codes]).tolist():
            seen = counted[codes[row]] = counted.get(codes[row], 0) + 1
            names[row] += f"\0{seen}" if seen > 1 else ""
        key = pa.array(names, pa.string())
    return table.append_column("key", key)


def _only_in(table: pa.Table, other: pa.Table) -> list[dict[str, Any]]:
    """Records of a table whose key the other has not, most posts first."""
    found = table.join(other.select(["key"]), keys="key", join_type="left anti")
    found = found.sort_by([("post_count", "descending"), ("key", "ascending")])
    return list(found.select(["id", "tag", "category", "post_count"]).to_pylist())


def _changed(both: pa.Table, column: str) -> list[dict[str, Any]]:
    """Records in which a column differs, a missing value from one that is there too."""
    old, new = both[f"{column}_old"], both[f"{column}_new"]
    differs = pc.fill_null(pc.not_equal(old, new), pc.xor(pc.is_null(old), pc.is_null(new)))
    found = both.filter(differs)
    columns = {"id": "id_new", "tag": "tag_new", "old": f"{column}_old", "new": f"{column}_new"}
    return list(pa.table({name: found[of] for name, of in columns.items()}).to_pylist())
