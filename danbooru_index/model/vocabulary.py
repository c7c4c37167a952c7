"""Whether a tokenizer and its model's embeddings belong together, known from the files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from danbooru_index.errors import ModelError, first_line

# The classes that BGE-M3's tokenizer is kept as, and the one that loads each.
TOKENIZER_CLASSES = {
    "XLMRobertaTokenizer": "XLMRobertaTokenizer",
    "PreTrainedTokenizer": "PreTrainedTokenizerFast",
    "TokenizersBackend": "PreTrainedTokenizerFast",
}


def check_tokenizer_settings(folder: Path) -> None:
    """Raise `ModelError` for another kind of tokenizer, or files outside the model id."""
    settings = read_tokenizer_settings(folder)
    path = folder / "tokenizer_config.json"
    kind = settings.get("tokenizer_class")
    if kind is not None and str(kind).removesuffix("Fast") not in TOKENIZER_CLASSES:
        raise ModelError(
            f"{path}: tokenizer_class is {kind!r}; of BGE-M3's format is XLMRobertaTokenizer"
        )
    if refused := [name for name in ("fast_tokenizer_files", "auto_map") if settings.get(name)]:
        raise ModelError(
            f"{path}: {refused[0]}: another tokenizer than the files of this folder: remove that"
            " line"
        )


def read_tokenizer_settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, nothing where there is none. Raises `ModelError`."""
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error, 120)})") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: not the settings of a tokenizer")
    return settings


def check_vocabulary(folder: Path, embeddings: int) -> None:
    """Raise `ModelError` where the tokenizer has ids that the model has no embedding for: they
    would fail, or on a GPU end the process, at the first text that has such a token.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return  # a SentencePiece model alone: `Tokenizer` compares when it has been read
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        pieces = tokenizer["model"]["vocab"]
        ids = range(len(pieces)) if isinstance(pieces, list) else pieces.values()
        largest = max([*ids, *(token["id"] for token in tokenizer.get("added_tokens") or ())])
        if type(largest) is not int:
            raise TypeError("its ids are no numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path}: not a tokenizer ({type(error).__name__}: {first_line(error, 120)})"
        ) from None
    refuse_ids_beyond(folder, largest, embeddings)


def refuse_ids_beyond(folder: Path, largest: int, embeddings: int) -> None:
    """Raise `ModelError` where the largest id of the tokenizer has no embedding."""
    if largest >= embeddings:
        raise ModelError(
            f"{folder}: its tokenizer has {largest + 1:,} entries, its model embeddings for"
            f" {embeddings:,}: they do not belong together"
        )
