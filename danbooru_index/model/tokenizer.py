"""The tokenizer of a checkpoint: texts -> a `TokenBatch`, as FlagEmbedding tokenises them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from danbooru_index.embeddings import TokenBatch
from danbooru_index.errors import ModelError, as_model_error
from danbooru_index.machine import uncollected
from danbooru_index.model.checkpoint_files import read_settings
from danbooru_index.model.loading import quiet_loading
from danbooru_index.model.vocabulary import (
    TOKENIZER_CLASSES,
    read_tokenizer_settings,
    refuse_ids_beyond,
)

# FlagEmbedding drops their weights
UNWEIGHTED_TOKENS = ("cls_token", "eos_token", "pad_token", "unk_token")
# of a tokenizer, for each embedding: a vocabulary is padded to a round number, never doubled
FEWEST_ENTRIES = 0.5
# Settings of a tokenizer that name its tokens, and change nothing.
PLAIN_SETTINGS = {"tokenizer_class", "model_max_length"} | {
    f"{name}_token" for name in ("bos", "eos", "cls", "sep", "pad", "unk", "mask")
}
PROBE = "a\ue000"  # a letter, and a character that no vocabulary has


class Tokenizer:
    """The checkpoint's tokenizer, as FlagEmbedding gets it; `plain`: without transformers where the
    files alone say all, a second sooner. Raises `ModelError`.
    """

    @uncollected()
    def __init__(self, path: str, max_length: int, *, plain: bool = False) -> None:
        tokenizer = _plain_tokenizer(Path(path)) if plain else None
        if tokenizer is None:
            with quiet_loading(), as_model_error(f"{path}: cannot load the tokenizer ({{}})"):
                tokenizer = _tokenizer_class(path).from_pretrained(path, trust_remote_code=False)
        self._max_length = max_length
        # Called without transformers' own wrapping, which costs two thirds as much again.
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_padding()
        self.backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
        self._special = _special_ids(tokenizer, Path(path))

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise; truncate at `max_length` tokens, special ones too, as FlagEmbedding does."""
        encodings = self.backend.encode_batch_fast(list(texts))
        rows = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        token_ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        full = np.flatnonzero(lengths >= self._max_length)
        truncated = sum(1 for row in full if encodings[int(row)].overflowing)
        return TokenBatch(token_ids, lengths, self._special, truncated)


def _plain_tokenizer(folder: Path) -> Any | None:
    """What `PreTrainedTokenizerFast` would be, from `tokenizer.json`; None for another class, or
    settings that may change it.
    """
    settings = read_tokenizer_settings(folder)
    named = {name: settings.get(name) for name in UNWEIGHTED_TOKENS}
    known = settings.keys() <= PLAIN_SETTINGS and all(isinstance(v, str) for v in named.values())
    fast = TOKENIZER_CLASSES.get(str(settings.get("tokenizer_class")).removesuffix("Fast"))
    more = [
        name
        for name in ("special_tokens_map.json", "added_tokens.json")
        if (folder / name).exists()
    ]
    if not known or more or fast != "PreTrainedTokenizerFast":
        return None
    from tokenizers import Tokenizer as Backend

    with as_model_error(f"{folder}: cannot load the tokenizer ({{}})"):
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    ids = {f"{name}_id": backend.token_to_id(str(token)) for name, token in named.items()}
    return SimpleNamespace(backend_tokenizer=backend, truncation_side="right", **ids)


def _tokenizer_class(path: str) -> Any:
    """The class that `AutoTokenizer` would choose, without its import of torch."""
    import transformers

    named = str(read_tokenizer_settings(Path(path)).get("tokenizer_class"))
    return getattr(transformers, TOKENIZER_CLASSES.get(named.removesuffix("Fast"), "AutoTokenizer"))


def _special_ids(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """The ids of `UNWEIGHTED_TOKENS`, which get no sparse weight.

    Raises `ModelError` unless every text begins with the first and ends with the second, and all
    ids are the model's own: else other vectors would be taken for a text's, and nobody would
    notice.
    """
    settings = read_settings(folder)
    backend = tokenizer.backend_tokenizer
    entries = backend.get_vocab_size(with_added_tokens=True)
    largest = max([entries - 1, *backend.get_added_tokens_decoder()])
    refuse_ids_beyond(folder, largest, settings["vocab_size"])
    if entries < FEWEST_ENTRIES * settings["vocab_size"]:
        raise ModelError(
            f"{folder}: its tokenizer has {entries:,} entries, its model embeddings for"
            f" {settings['vocab_size']:,}: they do not belong together"
        )
    ids: list[Any] = [getattr(tokenizer, f"{name}_id", None) for name in UNWEIGHTED_TOKENS]
    if missing := [
        name for name, number in zip(UNWEIGHTED_TOKENS, ids, strict=True) if number is None
    ]:
        raise ModelError(
            f"{folder}: its tokenizer names no {', '.join(missing)} (tokenizer_config.json)"
        )
    with as_model_error(f"{folder}: its tokenizer cannot take an unknown character ({{}})"):
        probe = backend.encode(PROBE).ids
    padding = settings.get("pad_token_id", 1)
    if len(probe) < 3 or [probe[0], probe[-1], padding] != ids[:3]:
        raise ModelError(
            f"{folder}: its tokenizer puts {probe[:1]} before and {probe[-1:]} after a text and"
            f" pads with {ids[2]}; BGE-M3's format is {ids[:1]}, {ids[1:2]} (tokenizer.json:"
            f" post_processor) and {padding} (config.json)"
        )
    return tuple(ids)
