"""The files of a checkpoint: which decide its numbers, what `config.json` must say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from danbooru_index.errors import ModelError, first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
# What another value of makes it another model, which the packed forward pass does not compute, or
# hides a file from its id.
FIXED = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
}
REFUSED = ("auto_map", "transformers_weights", "quantization_config")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FIRST_FEW = 4  # tensors in a message


def weight_files(names: Iterable[str]) -> list[str]:
    """The weight files that transformers would load: the first form that is there."""
    present = set(names)
    for form in WEIGHTS:
        if form in present:
            return [form]
        index = f"{form}.index.json"
        if index in present:
            stem, suffix = form.rsplit(".", 1)
            return [
                index,
                *sorted(
                    n for n in present if n.startswith(f"{stem}-") and n.endswith(f".{suffix}")
                ),
            ]
    return []


def needed_files(names: Iterable[str]) -> set[str]:
    """The files that decide a model's numbers: one form of weights, heads, tokenizer, settings."""
    present = set(names)
    return {*weight_files(present), *(present & {*HEADS, *TOKENIZERS, *SETTINGS})}


def read_settings(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint in BGE-M3's format; raise `ModelError` for another one, and for
    numbers that are missing, which transformers would make up.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error, 120)})") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "xlm-roberta":
        raise ModelError(f"{path}: model_type is {kind!r}; BGE-M3's format is 'xlm-roberta'")
    numbers = {name: config.get(name) for name in SIZES} | {
        "type_vocab_size": config.get("type_vocab_size", 2)
    }
    wrong = [
        name for name, value in numbers.items() if type(value) is not int or not 0 < value < 1 << 31
    ]
    if wrong:
        raise ModelError(
            f"{path}: {' and '.join(wrong)}: a positive number is needed; not a checkpoint in"
            " BGE-M3's format"
        )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ModelError(
            f"{path}: {config['num_attention_heads']} heads do not divide {config['hidden_size']}"
            " values"
        )
    if (
        not isinstance(config.get("layer_norm_eps"), float)
        or type(config.get("pad_token_id", 1)) is not int
    ):
        raise ModelError(f"{path}: layer_norm_eps and pad_token_id: numbers are needed")
    others = [
        f"{name} {config.get(name)!r}"
        for name, values in FIXED.items()
        if config.get(name) not in values
    ]
    if others := others + [name for name in REFUSED if config.get(name) is not None]:
        raise ModelError(
            f"{path}: {', '.join(others)}: not BGE-M3's format, whose files are plain weights and"
            " no code"
        )
    settings: dict[str, Any] = config
    return settings


def refuse_pointers(folder: Path, names: Iterable[str]) -> None:
    """Raise `ModelError` for git-lfs pointers: 130 bytes of text in place of the content."""
    pointers = []
    for name in names:
        with (folder / name).open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                pointers.append(name)
    if pointers:
        raise ModelError(
            f"{folder}: {first_few(pointers)}: git-lfs pointers, not the files themselves: run git"
            " lfs pull in that folder (git lfs install first)"
        )


def first_few(names: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - FIRST_FEW} more" if len(known) > FIRST_FEW else ""
    return ", ".join(known[:FIRST_FEW]) + more
