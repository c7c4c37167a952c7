"""A model of a hub: files fetched or found in the cache; every failure is one line.

Honours `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`. Only the files that are needed
are fetched: no ONNX copies, one copy of the weights.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from danbooru_index.config import BUNDLED_MODEL, PRODUCTION_MODEL
from danbooru_index.errors import ModelError, UsageError, first_line
from danbooru_index.log_lines import other_bars
from danbooru_index.model.checkpoint_files import HEADS, SETTINGS, needed_files

log = logging.getLogger(__name__)

HUB_TIMEOUT_S = 30


def fetch_model(name: str) -> str:
    """Download (or find in the cache) the needed files of a hub model; return the local folder.

    Honours `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`; says size and progress on
    stderr. A hub that cannot be reached is no obstacle to a model that is in the cache.
    """
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        if offline:
            return _cached(name)
        return _download(name)
    except HFValidationError:
        raise UsageError(
            f"--model {name!r} is neither a folder nor a hub name such as {PRODUCTION_MODEL}"
        ) from None
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
                log.warning(f"model {name}: {endpoint} cannot be used now; taken from the cache")
                return cached
            said = f"answered {status}" if status else f"cannot be reached ({type(error).__name__})"
            problem = f"{name}: {endpoint} {said}"
    except (ValueError, httpx2.InvalidURL) as error:
        problem = f"HF_ENDPOINT={endpoint}: {first_line(error)}"
    raise ModelError(
        f"{problem}; set HF_ENDPOINT to a mirror (HF_ENDPOINT=https://hf-mirror.com), or HF_TOKEN"
        f" where one is needed, or pass --model a local folder, or --model {BUNDLED_MODEL}",
        missing=True,
    )


def _cached(name: str) -> str:
    """A model's folder in the local cache; raise `LocalEntryNotFoundError`, an OSError."""
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
    needed = sorted(needed_files(sizes))
    missing = [head for head in HEADS if head not in needed]
    if missing:
        raise ModelError(
            f"{name}: {' and '.join(missing)} missing in this repository: not in BGE-M3's format"
        )
    total = sum(sizes[file] for file in needed)
    log.info(f"model {name}: {len(needed)} files, {total / 1e9:.2f} GB")
    with _bars_on_stderr(), other_bars():
        # by branch: so that offline use finds it
        return snapshot_download(name, allow_patterns=needed)


@contextlib.contextmanager
def _bars_on_stderr() -> Iterator[None]:
    """The hub's progress bars go to stderr, and only where that is a terminal."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
