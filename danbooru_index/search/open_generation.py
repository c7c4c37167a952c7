"""A generation that answers queries: its arrays, its tables, and the model that encodes a query.

Each is opened when a query first needs it, by one thread, however many ask.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from danbooru_index.choices import Device, Mode
from danbooru_index.errors import ModelError, StorageError
from danbooru_index.index.catalog import Generation
from danbooru_index.index.search_files import SearchFiles, saved_search_files

if TYPE_CHECKING:  # Lance takes 0.8 s to import: not for a lexical search
    from danbooru_index.index.reader import GenerationReader
    from danbooru_index.search.query_encoder import QueryEncoder

log = logging.getLogger(__name__)


class QueryModel:
    """The model that built a generation, for its queries."""

    def __init__(self, generation: Generation, name: str | None, device: Device) -> None:
        self._generation, self._name, self._device = generation, name, device
        self._loading = threading.Lock()
        self._encoder: QueryEncoder | None = None
        self._missing: ModelError | None = None

    def serves(self, other: Generation) -> bool:
        """Whether a query of another generation is encoded alike."""
        return _asked_by(other) == _asked_by(self._generation)

    def encoder(self, asked: Mode) -> QueryEncoder | None:
        """Load it, once; None where names alone must do: a lexical search, or a hybrid one whose
        model is missing. Raises `ModelError`.
        """
        if asked is Mode.LEXICAL:
            return None
        with self._loading:
            if self._encoder is None and self._missing is None:
                self._load()
        if self._missing is not None and asked is not Mode.HYBRID:
            raise self._missing
        return self._encoder

    def _load(self) -> None:
        from danbooru_index.search.query_encoder import QueryEncoder

        try:
            self._encoder = QueryEncoder(self._generation, self._name, self._device)
        except ModelError as error:
            if not error.missing:
                raise
            self._missing = error
            log.warning(f"danbooru-index: by names alone, without the model: {error}")


class OpenGeneration:
    """A generation, what lies beside its tables, its tables, and its model."""

    def __init__(self, generation: Generation, model: QueryModel) -> None:
        self.generation, self.model = generation, model
        self._opening = threading.RLock()

    @property
    def files(self) -> SearchFiles:
        with self._opening:
            return self._files

    @property
    def tables(self) -> GenerationReader:
        with self._opening:
            return self._tables

    @cached_property
    def _files(self) -> SearchFiles:
        return saved_search_files(self.generation) or self._tables.files

    @cached_property
    def _tables(self) -> GenerationReader:
        from danbooru_index.index.reader import GenerationReader

        reader = GenerationReader(self.generation)
        _ = reader.files, reader.inverted  # before several threads ask for them
        return reader


def _asked_by(generation: Generation) -> tuple[str, str]:
    """What the encoding of a query depends on."""
    return generation.manifest.fingerprint_digest, generation.manifest.query_instruction


@contextlib.contextmanager
def as_storage_errors() -> Iterator[None]:
    """What Lance, Arrow and the system say of an index that is damaged or gone: `StorageError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"the index cannot be read ({reason}); danbooru-index verify says what is wrong"
        ) from None
