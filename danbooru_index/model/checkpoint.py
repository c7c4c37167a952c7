"""Which model: a hub name, a folder or m3-mini -> a checked local folder with its model id.

The driver resolves the model once, before any actor starts, and passes the local path on; each
actor checks the id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danbooru_index.config import BUNDLED_MODEL, PRODUCTION_MODEL
from danbooru_index.errors import ModelError, first_line
from danbooru_index.model.checkpoint_files import (
    HEADS,
    SETTINGS,
    TOKENIZERS,
    WEIGHTS,
    needed_files,
    read_settings,
    refuse_pointers,
)
from danbooru_index.model.hub import fetch_model
from danbooru_index.model.vocabulary import check_tokenizer_settings, check_vocabulary
from danbooru_index.model.weights import check_weights

log = logging.getLogger(__name__)

BUNDLED_FOLDER = Path(__file__).parent / BUNDLED_MODEL
TOKENIZER_FILES = (*TOKENIZERS, *SETTINGS[1:])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model at hand: the name it was asked for by, its local folder, its id (a hash of every file
    that counts), and what the file system said of those files before they were read (`stamp_of`).
    """

    name: str
    path: str
    model_id: str
    stamp: str


def resolve_model(name: str) -> Checkpoint:
    """Find or fetch the model `name`, and check that it is whole. Raises `ModelError` saying what
    is wrong with it, or where it could come from.
    """
    return identify(name, find_model(name))


def identify(name: str, folder: Path) -> Checkpoint:
    """The model in a folder, every file of it read. Raises `ModelError` for what is missing."""
    stamp = stamp_of(folder)
    return Checkpoint(name, str(folder.resolve()), model_id(folder), stamp)


def find_model(name: str) -> Path:
    """The folder of the model `name`, fetched if need be, and whole. Raises `ModelError`."""
    folder = locate_model(name)
    check_model(folder)
    return folder


def locate_model(name: str) -> Path:
    """The folder of model `name`, fetched if need be, not checked. Raises `ModelError`."""
    folder = Path(os.path.expanduser(name))
    if name == BUNDLED_MODEL and not folder.is_dir():
        folder = BUNDLED_FOLDER
    elif not folder.is_dir():
        if _looks_like_path(name):
            raise ModelError(
                f"--model {name}: no such folder; a folder in BGE-M3's format or a hub name is"
                " needed",
                missing=True,
            )
        folder = Path(fetch_model(name))
    return folder


def check_model(folder: Path) -> None:
    """Whether a folder holds a whole model in BGE-M3's format: files, tensors, vocabulary. Reads
    names and shapes only, so that this is known before Ray starts. Raises `ModelError`.
    """
    refuse_pointers(folder, required_files(folder))
    settings = read_settings(folder)
    check_weights(folder, settings)
    _check_pooling(folder)
    check_tokenizer_settings(folder)
    check_vocabulary(folder, int(settings["vocab_size"]))


def default_model(device: str) -> str:
    """The model where none was asked for: BAAI/bge-m3 on a GPU, else m3-mini, and said so."""
    if device == "cuda":
        return PRODUCTION_MODEL
    log.info(
        f"no --model and no GPU in use: {BUNDLED_MODEL}, the small embedded model; --model"
        f" {PRODUCTION_MODEL} is the better and slower choice"
    )
    return BUNDLED_MODEL


def hidden_size(checkpoint: Checkpoint) -> int:
    """How many values its dense vectors have."""
    return int(settings_of(checkpoint)["hidden_size"])


def longest_text(checkpoint: Checkpoint) -> int:
    """The most tokens of a text that it has positions for."""
    return int(settings_of(checkpoint)["max_position_embeddings"]) - 2


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its `config.json`."""
    return read_settings(Path(checkpoint.path))


def model_id(folder: Path) -> str:
    """SHA-256 over weights, heads, tokenizer and configuration; all must be there."""
    digest = hashlib.sha256()
    for name in required_files(folder):
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def stamp_of(folder: Path) -> str:
    """Names, sizes, inodes and times of change of a checkpoint's files: where they are the same, so
    is the model id, and 2.3 GB need not be read again. Checks that all are there.
    """
    found = [(name, (folder / name).stat()) for name in required_files(folder)]
    return json.dumps([(name, file.st_size, file.st_ino, file.st_ctime_ns) for name, file in found])


def required_files(folder: Path) -> list[str]:
    """The files of a checkpoint that decide its numbers; raise `ModelError` for what is missing."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    if "config.json" not in present:
        inner = sorted(
            path.parent.name for path in folder.glob("*/config.json") if "modules.json" in present
        )
        raise ModelError(
            f"{folder}: no configuration (config.json): not a checkpoint in BGE-M3's format"
            + (
                f"; {inner[0]} in it may be one (with {' and '.join(HEADS)} beside its weights)"
                if inner
                else ""
            )
        )
    if "adapter_config.json" in present:
        raise ModelError(
            f"{folder}: an adapter (adapter_config.json), not a whole model: merge it into its base"
            " first"
        )
    chosen = needed_files(present)
    for kind, names in (("weights", WEIGHTS), ("tokenizer", TOKENIZERS)):
        if not any(name in present or f"{name}.index.json" in present for name in names):
            raise ModelError(
                f"{folder}: no {kind} ({' or '.join(names)}): not a checkpoint in BGE-M3's format"
            )
    return sorted(chosen)


def _check_pooling(folder: Path) -> None:
    """Raise `ModelError` where sentence-transformers' settings pool otherwise than BGE-M3, whose
    dense vector is the first token's: FlagEmbedding does not read them.
    """
    for path in sorted(folder.glob("*_Pooling/config.json")):
        try:
            pooling = json.loads(path.read_text(encoding="utf-8"))
            modes = [
                name.removeprefix("pooling_mode_")
                for name, value in pooling.items()
                if value is True
            ]
            modes = [str(pooling["pooling_mode"])] if "pooling_mode" in pooling else modes
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path}: cannot be read ({first_line(error, 120)})") from None
        if others := [mode for mode in modes if mode not in ("cls", "cls_token", "include_prompt")]:
            raise ModelError(
                f"{path}: pools by {', '.join(others)}; BGE-M3's dense vector is that of the first"
                " token"
            )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or os.sep + os.sep in name
