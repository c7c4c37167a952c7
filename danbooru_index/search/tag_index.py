"""Search: dense, sparse, ColBERT and hybrid over the published generation, exact, each score apart.

with TagIndex.open("my-index") as index:
    for hit in index.search("穿水手服的女孩", limit=5):
        print(hit.tag, hit.score)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from danbooru_index.choices import Device, Mode
from danbooru_index.config import Filter, Weights
from danbooru_index.errors import StorageError, UsageError
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.lance_io import panics_as_errors
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.hybrid import Ranking, rank
from danbooru_index.search.query import checked_query, shortened
from danbooru_index.search.query_encoder import QueryEncoder

LARGEST_LIMIT = 1000
REFRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: the record, its score in the mode asked for, and the score of each mode."""

    rank: int
    score: float
    dense: float
    sparse: float
    colbert: float
    id: str
    tag: str
    category: str
    text: str
    source: str
    post_count: int | None
    aliases: list[str]
    nsfw: bool
    deprecated: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TagIndex:
    """The published generation of an index, and its model, loaded at the first query."""

    def __init__(
        self,
        generation: Generation,
        model: str | None = None,
        device: Device = Device.AUTO,
        *,
        root: IndexRoot | None = None,
    ) -> None:
        self.generation = generation
        self._reader = GenerationReader(generation)
        self._model, self._device = model, device
        self._encode: QueryEncoder | None = None
        self._root, self._looked = root, time.monotonic()

    @classmethod
    def open(
        cls, root: str | Path, *, model: str | None = None, device: Device = Device.AUTO
    ) -> Self:
        """Open the generation that is published now, and follow what is published later.

        Raises `StorageError` where there is none.
        """
        place = IndexRoot(root)
        return cls(place.current(), model, device, root=place)

    @property
    def model(self) -> str:
        """The model that built the index: its name and the first digits of its id."""
        built = self.generation.manifest.model
        return f"{built.name} (id {built.id[:12]})"

    def refresh(self) -> bool:
        """Open the generation that is published now, if it is another; return whether it was.

        `search` does so by itself once in `REFRESH_S` seconds: far less than the grace period of
        `prune`.
        """
        self._looked = time.monotonic()
        if self._root is None or self._root.current_id() in (None, self.generation.id):
            return False
        latest = self._root.current()
        reader = GenerationReader(latest)
        if _asked_by(latest) != _asked_by(self.generation):
            self._encode = None
        self.generation, self._reader = latest, reader
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._encode = None

    def search(
        self,
        query: str,
        *,
        mode: Mode | str = Mode.HYBRID,
        limit: int = 10,
        weights: Weights = Weights(),
        category: str | Sequence[str] = (),
        min_post_count: int | None = None,
        nsfw: bool = False,
    ) -> list[Hit]:
        """The `limit` best tags for a query in any language, best first: of these categories, with
        at least so many posts; NSFW tags only where `nsfw`.

        Raises `UsageError` for an empty query, an unknown mode, a limit out of range or a category
        that no record has, `ModelError` when the model is another.
        """
        query = checked_query(query)
        chosen = Mode.parse(mode)
        if not (isinstance(limit, int) and 1 <= limit <= LARGEST_LIMIT):
            raise UsageError(f"--limit must be between 1 and {LARGEST_LIMIT}, not {limit}")
        if time.monotonic() - self._looked > REFRESH_S:
            with contextlib.suppress(StorageError):  # the one that is open still answers
                self.refresh()
        wanted = Filter(
            (category,) if isinstance(category, str) else tuple(category), min_post_count, nsfw
        )
        try:
            return self._answer(query, chosen, limit, weights, wanted)
        except StorageError:
            if not self.refresh():
                raise
            # what was open is gone: replaced long ago
            return self._answer(query, chosen, limit, weights, wanted)

    def _answer(
        self, query: str, mode: Mode, limit: int, weights: Weights, wanted: Filter
    ) -> list[Hit]:
        """One search on one generation."""
        if self._encode is None:
            self._encode = QueryEncoder(self.generation, self._model, self._device)
        encoded = self._encode([query])[0]
        try:
            with panics_as_errors():
                return _hits(
                    self._reader, rank(self._reader, encoded, mode, limit, weights, wanted)
                )
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(
                f"the index cannot be read ({reason}); danbooru-index verify says what is wrong"
            ) from None


def _asked_by(generation: Generation) -> tuple[str, str]:
    """What the encoding of a query depends on."""
    return generation.manifest.fingerprint_digest, generation.manifest.query_instruction


def _hits(reader: GenerationReader, ranking: Ranking) -> list[Hit]:
    hits = []
    for place, record in enumerate(reader.records(ranking.rows)):
        scores: dict[str, Any] = {
            name: float(getattr(ranking, name)[place])
            for name in ("score", "dense", "sparse", "colbert")
        }
        hits.append(Hit(rank=place + 1, **scores, **record))
    return hits


def format_hits(query: str, hits: Iterable[Hit]) -> str:
    """A small table for a terminal; CJK characters count as two columns."""
    lines = [
        shortened(query),
        f"  {'':>2}  {'score':>6} {'dense':>6} {'sparse':>6} {'colbert':>7}  text",
    ]
    for hit in hits:
        text = shortened(hit.text, 70)
        lines.append(
            f"  {hit.rank:>2}  {hit.score:>6.3f} {hit.dense:>6.3f} {hit.sparse:>6.3f}"
            f" {hit.colbert:>7.3f}  {text}"
        )
    if len(lines) == 2:
        lines.append("  nothing found")
    return "\n".join(lines)
