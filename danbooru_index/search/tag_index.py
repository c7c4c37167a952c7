"""Search the published generation: by names, dense, sparse, ColBERT, or all together.

with TagIndex.open("my-index") as index:
    for hit in index.search("穿水手服的女孩", limit=5):
        print(hit.tag, hit.score, hit.reason)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from danbooru_index.choices import Device, Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.errors import StorageError, UsageError
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.search.answering import answers
from danbooru_index.search.filters import allowed
from danbooru_index.search.hit import Hit as Hit
from danbooru_index.search.hit import Hits
from danbooru_index.search.open_generation import OpenGeneration, QueryModel, as_storage_errors
from danbooru_index.search.query import Asked, checked_query
from danbooru_index.search.resolve import Resolved, resolve_names

LARGEST_LIMIT = 1000
REFRESH_S = 1.0


class TagIndex:
    """The published generation of an index, and its model, loaded when a query needs it.

    Any number of threads may search at once; all of a search's answers are of one generation.
    Its length is that of the options, which each way of asking has.
    """

    def __init__(
        self,
        generation: Generation,
        model: str | None = None,
        device: Device = Device.AUTO,
        *,
        root: IndexRoot | None = None,
    ) -> None:
        self._model, self._device = model, device
        self._open = OpenGeneration(generation, self._model_of(generation))
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

    def _model_of(self, generation: Generation) -> QueryModel:
        return QueryModel(generation, self._model, self._device)

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
        opened = self._open
        if self._root is None or self._root.current_id() in (None, opened.generation.id):
            return False
        latest = self._root.current()
        known = opened.model.serves(latest)
        self._open = OpenGeneration(latest, opened.model if known else self._model_of(latest))
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the model; a later search loads it again."""
        generation = self.generation
        self._open = OpenGeneration(generation, self._model_of(generation))

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
        explain: bool = False,
    ) -> Hits:
        """The `limit` best tags for a query in any language, best first: of these categories, with
        at least so many posts; NSFW tags only where `nsfw`. `explain`: each hit says why it stands
        where it stands.

        A prompt or a description is answered by part, too: what its parts name stands first. A
        hybrid search whose model is missing answers by names alone, and warns once. Raises
        `UsageError` for an empty query, an unknown mode, a limit out of range or a category that no
        record has, `ModelError` when the model is another.
        """
        return self.search_many(
            [query],
            mode=mode,
            limit=limit,
            weights=weights,
            fusion=fusion,
            category=category,
            min_post_count=min_post_count,
            nsfw=nsfw,
            explain=explain,
        )[0]

    async def search_async(self, query: str, **options: Any) -> Hits:
        """`search` in a thread, with its options, for programs that run an event loop."""
        return await asyncio.to_thread(self.search, query, **options)

    def search_many(
        self,
        queries: Sequence[str],
        *,
        mode: Mode | str = Mode.HYBRID,
        limit: int = 10,
        weights: Weights = Weights(),
        fusion: Fusion = Fusion(),
        category: str | Sequence[str] = (),
        min_post_count: int | None = None,
        nsfw: bool = False,
        explain: bool = False,
    ) -> list[Hits]:
        """`search` of each query, all encoded in one pass and answered by one generation."""
        texts = [checked_query(query) for query in queries]
        if not (isinstance(limit, int) and 1 <= limit <= LARGEST_LIMIT):
            raise UsageError(f"--limit must be between 1 and {LARGEST_LIMIT}, not {limit}")
        categories = (category,) if isinstance(category, str) else tuple(category)
        wanted = Filter(categories, min_post_count, nsfw)
        asked = Asked(Mode.parse(mode), limit, weights, fusion, wanted, explain)
        if time.monotonic() - self._looked > REFRESH_S:
            with contextlib.suppress(StorageError):  # the one that is open still answers
                self.refresh()
        try:
            return answers(self._open, texts, asked)
        except StorageError:
            if not self.refresh():
                raise
            return answers(self._open, texts, asked)  # what was open is gone: replaced long ago

    def resolve(
        self,
        names: str,
        *,
        category: str | Sequence[str] = (),
        min_post_count: int | None = None,
        nsfw: bool = True,
    ) -> list[Resolved]:
        """What each name of a prompt or a list is: a tag, an alias of one, nearly one, unknown. No
        model is asked. NSFW tags count unless `nsfw` is False. Raises `UsageError`.
        """
        text = checked_query(names)
        categories = (category,) if isinstance(category, str) else tuple(category)
        with as_storage_errors():
            files = self._open.files
            mask = allowed(files, Filter(categories, min_post_count, nsfw)).mask
            return resolve_names(files, text, mask)

    def answering_mode(self, asked: Mode) -> Mode:
        """The mode in which a search is answered: lexical instead of hybrid without the model.

        Loads the model where the mode needs it; raises `ModelError`.
        """
        return Mode.LEXICAL if self._open.model.encoder(asked) is None else asked
