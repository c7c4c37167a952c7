"""The driver's own work beside listing the input and starting Ray: what the model's files say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from danbooru_index.errors import ModelError
from danbooru_index.ingest.sampling import choose_samples
from danbooru_index.ingest.shards import Shard
from danbooru_index.model.checkpoint import Checkpoint, check_model, identify, locate_model, required_files

ESTIMATE_TEXTS = 2000
T = TypeVar("T")


class Lookahead:
    """The model `name`, found, or fetched, at once, so that a stop ends that too; then checked and read in threads, which hold
    nobody up who stops the build. `whole`: False where nothing of its weights will be loaded.

    Raises `ModelError` where there is none.
    """

    def __init__(self, name: str, *, whole: bool = True) -> None:
        self._name, self._folder = name, locate_model(name)
        self._checked = _begin(check_model if whole else required_files, self._folder)

    def look(self, shards: list[Shard], max_length: int) -> Lookahead:
        """Wait until the model is known to be whole, then go on reading. Raises `ModelError`, before Ray has started."""
        self._checked.result()
        self._checkpoint = _begin(identify, self._name, self._folder)
        self._tokens_per_text = _begin(_tokens_per_text, self._folder, shards, max_length)
        return self

    def checkpoint(self) -> Checkpoint:
        """The model, identified; raise `ModelError` where a file is missing."""
        return self._checkpoint.result()

    def tokens_per_text(self) -> float:
        """The mean number of tokens of a text, from a sample; raise `ModelError` for a tokenizer that is none."""
        return self._tokens_per_text.result()


def _begin(function: Callable[..., T], *arguments: Any) -> Future[T]:
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, name=function.__name__, daemon=True).start()
    return future


def _tokens_per_text(model: Path, shards: list[Shard], max_length: int) -> float:
    tokenizer = model / "tokenizer.json"
    texts = [sample.text for sample in choose_samples(shards, ESTIMATE_TEXTS)]
    if not texts or not tokenizer.is_file():
        return 40.0
    from tokenizers import Tokenizer

    try:
        fast = Tokenizer.from_file(str(tokenizer))
        fast.no_padding()
        fast.no_truncation()
        encodings = fast.encode_batch(texts)
    except Exception as error:  # the library raises no narrower one
        raise ModelError(f"{tokenizer}: not a tokenizer ({' '.join(str(error).split())[:160]})") from None
    return float(np.mean([min(len(encoding.ids), max_length) for encoding in encodings]))
