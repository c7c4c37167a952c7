"""Search the published generation: by names, dense, sparse, ColBERT, or all together.

with TagIndex.open("my-index") as index:
    for hit in index.search("穿水手服的女孩", limit=5):
        print(hit.tag, hit.score, hit.reason)
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from danbooru_index.choices import Device, Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.errors import ModelError, StorageError, UsageError
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.search_files import SearchFiles, saved_search_files
from danbooru_index.search.hit import Hit as Hit
from danbooru_index.search.hit import make_hits
from danbooru_index.search.query import checked_query
from danbooru_index.search.ranking import rank_names

if TYPE_CHECKING:  # Lance takes 0.8 s to import: not for a lexical search
    from danbooru_index.index.reader import GenerationReader
    from danbooru_index.search.query_encoder import QueryEncoder

LARGEST_LIMIT = 1000
REFRESH_S = 1.0

log = logging.getLogger(__name__)


class OpenGeneration:
    """A generation that answers: what lies beside its tables; the tables when they are asked."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    @cached_property
    def files(self) -> SearchFiles:
        return saved_search_files(self.generation) or self.tables.files

    @cached_property
    def tables(self) -> GenerationReader:
        from danbooru_index.index.reader import GenerationReader

        return GenerationReader(self.generation)


class TagIndex:
    """The published generation of an index, and its model, loaded when a query needs it."""

    def __init__(
        self,
        generation: Generation,
        model: str | None = None,
        device: Device = Device.AUTO,
        *,
        root: IndexRoot | None = None,
    ) -> None:
        self._open = OpenGeneration(generation)
        self._model, self._device = model, device
        self._encode: QueryEncoder | None = None
        self._missing: ModelError | None = None
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
    def generation(self) -> Generation:
        """The generation that answers now."""
        return self._open.generation

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
        opened = OpenGeneration(latest)
        if _asked_by(latest) != _asked_by(self.generation):
            self._encode, self._missing = None, None
        self._open = opened
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
        fusion: Fusion = Fusion(),
        category: str | Sequence[str] = (),
        min_post_count: int | None = None,
        nsfw: bool = False,
    ) -> list[Hit]:
        """The `limit` best tags for a query in any language, best first: of these categories, with
        at least so many posts; NSFW tags only where `nsfw`.

        A hybrid search whose model is missing answers by names alone, and warns once. Raises
        `UsageError` for an empty query, an unknown mode, a limit out of range or a category that no
        record has, `ModelError` when the model is another.
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
            return self._answer(query, chosen, limit, (weights, fusion), wanted)
        except StorageError:
            if not self.refresh():
                raise
            # what was open is gone: replaced long ago
            return self._answer(query, chosen, limit, (weights, fusion), wanted)

    def answering_mode(self, asked: Mode) -> Mode:
        """The mode in which a search is answered: lexical instead of hybrid without the model.

        Loads the model where the mode needs it; raises `ModelError`.
        """
        if asked is Mode.LEXICAL or self._encode is not None:
            return asked
        if self._missing is None:
            from danbooru_index.search.query_encoder import QueryEncoder

            try:
                self._encode = QueryEncoder(self.generation, self._model, self._device)
                return asked
            except ModelError as error:
                if not error.missing:
                    raise
                self._missing = error
                if asked is Mode.HYBRID:
                    log.warning(f"danbooru-index: by names alone, without the model: {error}")
        if asked is not Mode.HYBRID:
            raise self._missing
        return Mode.LEXICAL

    def _answer(
        self, query: str, asked: Mode, limit: int, by: tuple[Weights, Fusion], wanted: Filter
    ) -> list[Hit]:
        """One search on one generation."""
        opened, mode = self._open, self.answering_mode(asked)
        encoder = self._encode
        with _unreadable():
            if mode is Mode.LEXICAL or encoder is None:
                ranking = rank_names(opened.files, query, limit, wanted)
            else:
                from danbooru_index.index.lance_io import panics_as_errors
                from danbooru_index.search.hybrid import rank

                encoded = encoder([query])[0]
                with panics_as_errors():
                    ranking = rank(opened.tables, encoded, mode, limit, by[0], wanted, by[1])
            return make_hits(opened.files, query, ranking)


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """What Lance, Arrow and the system say of an index that is damaged or gone: `StorageError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"the index cannot be read ({reason}); danbooru-index verify says what is wrong"
        ) from None


def _asked_by(generation: Generation) -> tuple[str, str]:
    """What the encoding of a query depends on."""
    return generation.manifest.fingerprint_digest, generation.manifest.query_instruction
