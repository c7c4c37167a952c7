"""The data of a training: pairs read, a few set aside, the others in training order."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from danbooru_index.errors import UsageError
from danbooru_index.evaluation.queries import read_queries
from danbooru_index.ingest.sources import list_inputs
from danbooru_index.storage.local import LocalStorage
from danbooru_index.training.finetune_config import FinetuneConfig
from danbooru_index.training.pairs import (
    ASIDE,
    PAIRS,
    Pair,
    check_held_out,
    read_names,
    read_training_data,
)

log = logging.getLogger(__name__)

ASIDE_SHARE, MOST_ASIDE = 0.02, 1000


def held_out_queries(paths: Iterable[str]) -> list[str]:
    """The queries that are never trained on, of all these files."""
    return [query.text for path in paths for query in read_queries(path)]


def training_digest(config: FinetuneConfig, base_id: str) -> str:
    """What makes two calls one training: settings, base model, size and time of its files."""
    settings = config.decisive() | {"base": base_id}
    files = [*list_inputs((config.pairs,)), *map(Path, (*config.names, *config.held_out))]
    return hashlib.sha256(
        json.dumps([settings, stamps(files)], sort_keys=True).encode()
    ).hexdigest()


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """The place, size and time of change of each file that is there."""
    return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]


def read_pairs(config: FinetuneConfig, held_out: list[str]) -> list[Pair]:
    """The training pairs; raise `UsageError` if some lack negatives and there is no index."""
    pairs = read_training_data(config.pairs, read_names(config.names), held_out)
    log.info(f"{len(pairs):,} training pairs from {config.pairs}")
    alone = sum(1 for pair in pairs if not pair.neg)
    if alone and config.index is None and config.group_size > 1:
        raise UsageError(
            f"{alone:,} pairs have no negatives: pass --index, to mine them; or --group-size 1, to"
            " train on the other texts of a batch alone"
        )
    return pairs


def write_pairs(
    config: FinetuneConfig, pairs: Sequence[Pair], held_out: Iterable[str], state: Path
) -> None:
    """Set a few pairs aside, with their queries; write the others in training order."""
    check_held_out(pairs, held_out)
    order = list(pairs)
    random.Random(config.seed).shuffle(order)
    aside = min(MOST_ASIDE, int(ASIDE_SHARE * len(order)))
    apart = {pair.query for pair in order[:aside]}
    kept = [pair for pair in order[aside:] if pair.query not in apart]
    if len(kept) < config.batch_size:
        raise UsageError(
            f"{len(kept):,} pairs do not fill one batch: lower --batch-size, or give more pairs"
        )
    LocalStorage(state / ASIDE).replace(
        "".join(pair.to_json() + "\n" for pair in order[:aside]).encode()
    )
    LocalStorage(state / PAIRS).replace("".join(pair.to_json() + "\n" for pair in kept).encode())
