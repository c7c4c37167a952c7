"""Which model: a hub name, a folder or the embedded one -> a local folder, checked, with its model id.

The driver resolves the model once, before any actor starts, and passes the local path on; each actor checks the id.
Only the files that are needed are fetched: no ONNX copies, one copy of the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danbooru_index.config import PRODUCTION_MODEL
from danbooru_index.errors import ModelError, UsageError

EMBEDDED_MODEL = "m3-mini"
EMBEDDED_FOLDER = Path(__file__).parent / "models" / EMBEDDED_MODEL
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (*TOKENIZERS, *SETTINGS[1:])
HUB_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model at hand: the name it was asked for by, its local folder, its id (a hash of every file that counts), and what
    the file system said of those files before they were read (`stamp_of`)."""

    name: str
    path: str
    model_id: str
    stamp: str


def resolve_model(name: str) -> Checkpoint:
    """Find or fetch the model `name`. Raises `ModelError` saying what is missing and where it could come from."""
    return identify(name, find_model(name))


def identify(name: str, folder: Path) -> Checkpoint:
    """The model in a folder, every file of it read. Raises `ModelError` for what is missing."""
    stamp = stamp_of(folder)
    return Checkpoint(name, str(folder.resolve()), model_id(folder), stamp)


def find_model(name: str) -> Path:
    """The folder of the model `name`, fetched where need be, all its files there. Raises `ModelError` as above."""
    folder = Path(os.path.expanduser(name))
    if name == EMBEDDED_MODEL and not folder.is_dir():
        folder = EMBEDDED_FOLDER
    elif not folder.is_dir():
        if _looks_like_path(name):
            raise ModelError(f"--model {name}: no such folder; a folder in BGE-M3's format or a hub name is needed")
        folder = Path(fetch_model(name))
    required_files(folder)
    return folder


def default_model(device: str) -> str:
    """The model of a machine on which none was asked for: BAAI/bge-m3 on a GPU, else the embedded one, and said so."""
    if device == "cuda":
        return PRODUCTION_MODEL
    print(
        f"no --model and no GPU in use: {EMBEDDED_MODEL}, the small embedded model; --model {PRODUCTION_MODEL} is the "
        "better and slower choice",
        file=sys.stderr,
    )
    return EMBEDDED_MODEL


def hidden_size(checkpoint: Checkpoint) -> int:
    """How many values its dense vectors have."""
    return int(settings_of(checkpoint)["hidden_size"])


def longest_text(checkpoint: Checkpoint) -> int:
    """The most tokens of a text that it has positions for."""
    return int(settings_of(checkpoint)["max_position_embeddings"]) - 2


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its `config.json`."""
    settings: dict[str, Any] = json.loads((Path(checkpoint.path) / "config.json").read_text(encoding="utf-8"))
    return settings


def model_id(folder: Path) -> str:
    """SHA-256 over the weights, heads, tokenizer and configuration of a checkpoint; checks that all are there."""
    digest = hashlib.sha256()
    for name in required_files(folder):
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def stamp_of(folder: Path) -> str:
    """Names, sizes, inodes and times of change of a checkpoint's files: where they are the same, so is the model id, and 2.3
    GB need not be read again. Checks that all are there."""
    found = [(name, (folder / name).stat()) for name in required_files(folder)]
    return json.dumps([(name, file.st_size, file.st_ino, file.st_ctime_ns) for name, file in found])


def required_files(folder: Path) -> list[str]:
    """The files of a checkpoint that decide its numbers; raise `ModelError` for what is missing."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    chosen = _choose(present)
    missing = [name for name in HEADS if name not in present]
    if missing:
        raise ModelError(
            f"{folder}: {' and '.join(missing)} missing: without its heads a model has no sparse weights and no ColBERT "
            f"vectors (FlagEmbedding would make them up at random); use a folder in the format of {PRODUCTION_MODEL}"
        )
    for kind, names in (("weights", WEIGHTS), ("tokenizer", TOKENIZERS), ("configuration", ("config.json",))):
        if not any(name in present or _is_sharded(name, present) for name in names):
            raise ModelError(f"{folder}: no {kind} ({' or '.join(names)}): not a checkpoint in BGE-M3's format")
    _check_config(folder / "config.json")
    return sorted(chosen)


def _choose(names: set[str]) -> set[str]:
    """Of all files of a repository those that are needed: one form of the weights, heads, tokenizer, settings."""
    weights: set[str] = set()
    for form in WEIGHTS:
        stem, suffix = form.rsplit(".", 1)
        weights = {n for n in names if n == form or (n.startswith(f"{stem}-") and n.endswith(suffix))}
        weights |= {n for n in names if n == f"{form}.index.json"}
        if weights:
            break
    return weights | (names & {*HEADS, *TOKENIZERS, *SETTINGS})


def _is_sharded(name: str, present: set[str]) -> bool:
    return f"{name}.index.json" in present


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({str(error)[:120]})") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "xlm-roberta":
        raise ModelError(f"{path}: model_type is {kind!r}; BGE-M3's format is 'xlm-roberta'")
    if not all(isinstance(config.get(name), int) for name in ("hidden_size", "max_position_embeddings")):
        raise ModelError(
            f"{path}: hidden_size and max_position_embeddings are needed; not a checkpoint in BGE-M3's format"
        )
    if "auto_map" in config:
        raise ModelError(f"{path}: asks to run code of its own (auto_map), which is never done")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or os.sep + os.sep in name


def fetch_model(name: str) -> str:
    """Download (or find in the cache) the needed files of a hub model; return the local folder.

    Honours `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`; says size and progress on stderr. A hub that
    cannot be reached is no obstacle to a model that is in the cache.
    """
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        if offline:
            return _cached(name)
        return _download(name)
    except HFValidationError:
        raise UsageError(f"--model {name!r} is neither a folder nor a hub name such as {PRODUCTION_MODEL}") from None
    except GatedRepoError:
        problem = f"{name}: access must be granted on {endpoint} first; then set HF_TOKEN"
    except RepositoryNotFoundError:
        problem = f"{name}: no such model on {endpoint} (or it is private: set HF_TOKEN)"
    except (OSError, httpx2.HTTPError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        problem = f"{name}: not in the local cache, and HF_HUB_OFFLINE is set"
        if not offline:
            with contextlib.suppress(OSError):
                cached = _cached(name)
                print(f"model {name}: {endpoint} cannot be used now; taken from the cache", file=sys.stderr)
                return cached
            said = f"answered {status}" if status else f"cannot be reached ({type(error).__name__})"
            problem = f"{name}: {endpoint} {said}"
    raise ModelError(
        f"{problem}; set HF_ENDPOINT to a mirror (HF_ENDPOINT=https://hf-mirror.com), or HF_TOKEN where one is needed, "
        f"or pass --model a local folder, or --model {EMBEDDED_MODEL}"
    )


def _cached(name: str) -> str:
    """The folder of a model in the local cache; raise `LocalEntryNotFoundError` (an OSError) where it is not."""
    from huggingface_hub import snapshot_download

    wanted = [*HEADS, *SETTINGS[:1]]
    folder = snapshot_download(name, allow_patterns=wanted, local_files_only=True)
    if any(not (Path(folder) / file).exists() for file in wanted):
        raise FileNotFoundError(folder)
    return folder


def _download(name: str) -> str:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(name, files_metadata=True, timeout=HUB_TIMEOUT_S)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    needed = sorted(_choose(set(sizes)))
    missing = [head for head in HEADS if head not in needed]
    if missing:
        raise ModelError(f"{name}: {' and '.join(missing)} missing in this repository: not in BGE-M3's format")
    total = sum(sizes[file] for file in needed)
    print(f"model {name}: {len(needed)} files, {total / 1e9:.2f} GB", file=sys.stderr)
    with _bars_on_stderr():
        return snapshot_download(name, allow_patterns=needed)  # by branch: so that offline use finds it


@contextlib.contextmanager
def _bars_on_stderr() -> Iterator[None]:
    """The hub's own progress bars go to stderr: shown where that is a terminal, left out elsewhere."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
