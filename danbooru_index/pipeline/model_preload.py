"""The model of a build, found and read beside listing the input and starting Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from danbooru_index.errors import as_model_error
from danbooru_index.ingest.sampling import InputSamples
from danbooru_index.model.checkpoint import (
    Checkpoint,
    check_model,
    identify,
    locate_model,
    required_files,
)

T = TypeVar("T")

TOKENS_IF_UNKNOWN = 40.0  # where there is no text, or no tokenizer file, to tell


def in_background(function: Callable[..., T], *arguments: Any, **named: Any) -> Future[T]:
    """Call `function` in a thread; `result()` waits for it, and raises what it raised.

    The thread is no daemon: a process that ends waits for the thread. A daemon thread was cut off
    while it read, and Arrow waited for that reader for ever as the process ended: 3 of 52 processes
    whose build was refused, 0 of 240 since.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:
            # handed over to whoever asks for the result; a panic of Rust's is no Exception
            future.set_exception(error)

    threading.Thread(target=work, name=function.__name__).start()
    return future


class ModelPreload:
    """The model `name`, found, or fetched, at once, so that a stop ends that too; then checked and
    read in the background. `whole`: False where nothing of its weights will be loaded.

    Raises `ModelError` where there is none.
    """

    def __init__(self, name: str, *, whole: bool = True) -> None:
        self._name, self._folder = name, locate_model(name)
        self._checked = in_background(check_model if whole else required_files, self._folder)

    def read(self, samples: Future[InputSamples], max_length: int) -> ModelPreload:
        """Wait until the model is known to be whole, then read on. Raises `ModelError`."""
        self._checked.result()
        self._checkpoint = in_background(identify, self._name, self._folder)
        self._tokens_per_text = in_background(_tokens_per_text, self._folder, samples, max_length)
        return self

    def checkpoint(self) -> Checkpoint:
        """The model, identified; raise `ModelError` where a file is missing."""
        return self._checkpoint.result()

    def tokens_per_text(self) -> float:
        """The mean tokens per text of the samples; raise `ModelError` for a broken tokenizer."""
        return self._tokens_per_text.result()


def _tokens_per_text(model: Path, samples: Future[InputSamples], max_length: int) -> float:
    tokenizer = model / "tokenizer.json"
    texts = list(samples.result().estimate)
    if not texts or not tokenizer.is_file():
        return TOKENS_IF_UNKNOWN
    from tokenizers import Tokenizer

    with as_model_error(f"{tokenizer}: not a tokenizer ({{}})", 160):
        fast = Tokenizer.from_file(str(tokenizer))
        fast.no_padding()
        fast.no_truncation()
        encodings = fast.encode_batch(texts)
    return float(np.mean([min(len(encoding.ids), max_length) for encoding in encodings]))
