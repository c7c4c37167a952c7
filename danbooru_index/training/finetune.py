"""Fine-tuning the model on tags: pairs and mined negatives -> FlagEmbedding's M3 training under Ray Train -> a folder.

Pairs come from a pairs file or are made from tag records; hard negatives are mined from an index with the model that
built it. The result is a folder in BGE-M3's format with a model card. A killed training goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from danbooru_index.cluster.resources import gpus_for, on_worker
from danbooru_index.cluster.session import ray_session
from danbooru_index.errors import UsageError
from danbooru_index.evaluation.queries import read_queries
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader
from danbooru_index.ingest.sources import list_inputs
from danbooru_index.model.checkpoint import TOKENIZER_FILES, Checkpoint, longest_text, model_id, resolve_model
from danbooru_index.progress import StepProgress
from danbooru_index.search.query_encoder import QueryEncoder, model_of
from danbooru_index.storage.local import LocalStorage
from danbooru_index.training.finetune_config import FinetuneConfig, FinetuneReport
from danbooru_index.training.model_card import draw_curves, model_card, read_curves
from danbooru_index.training.negatives import Mining, add_negatives
from danbooru_index.training.pairs import Pair, check_held_out, read_names, read_training_data
from danbooru_index.training.state import ASIDE, FINAL, LOG, PAIRS
from danbooru_index.training.worker_group import train_on_workers

STATE = ".training"
REPORT = "report.json"
ASIDE_SHARE, MOST_ASIDE = 0.02, 1000


def finetune(config: FinetuneConfig) -> FinetuneReport:
    """Train, or go on with a training that was killed; return the report.

    Raises `UsageError`, `InputError`, `ModelError`, `DeviceError`, `ClusterError`, or `BuildFailedError` when the
    training itself fails; the same call goes on from its last checkpoint.
    """
    started = time.monotonic()
    out, state = Path(config.out), Path(config.out) / STATE
    base = resolve_model(config.model or _index_model(config))
    if max(config.query_length, config.passage_length) > longest_text(base):
        raise UsageError(f"--query-length, --passage-length: {base.name} takes at most {longest_text(base)} tokens")
    held_out = [query.text for path in config.held_out for query in read_queries(path)]
    digest = _digest(config, base)
    if (out / REPORT).is_file():
        return _finished(out, digest)
    if out.exists() and any(out.iterdir()) and not state.is_dir():
        raise UsageError(f"{out}: not empty; choose another folder for the tuned model")
    LocalStorage(out).make_folder()
    LocalStorage(state).make_folder()
    with LocalStorage(state).owned():
        _claim(state, digest)
        data = None if (state / PAIRS).exists() else _read(config, held_out)
        with ray_session(config.address):
            gpus = gpus_for(config.device, config.num_gpus)
            if data is not None:
                if config.index is not None and config.group_size > 1:
                    data = on_worker(1, 1, _mine, config, data) if gpus else _mine(config, data)
                _write_pairs(config, data, held_out, state)
            if not (state / FINAL).is_dir():
                train_on_workers(config, base, state, gpus)
        return _finish(config, base, state, digest, len(held_out), time.monotonic() - started)


def _index_model(config: FinetuneConfig) -> str:
    return model_of(IndexRoot(config.index or "").current().manifest.model)


def _digest(config: FinetuneConfig, base: Checkpoint) -> str:
    """What makes two calls the same training: settings, base model, and the size and time of every file read."""
    settings = config.decisive() | {"base": base.model_id}
    files = [*list_inputs((config.pairs,)), *map(Path, (*config.names, *config.held_out))]
    return hashlib.sha256(json.dumps([settings, stamps(files)], sort_keys=True).encode()).hexdigest()


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """The place, size and time of change of each file that is there."""
    return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]


def _finished(out: Path, digest: str) -> FinetuneReport:
    """The report of a training that is done; raise `UsageError` when it was another."""
    try:
        fields = json.loads((out / REPORT).read_text(encoding="utf-8"))
        same = fields.pop("digest") == digest
        report = FinetuneReport(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{out}: not empty; choose another folder for the tuned model") from None
    if not same:
        raise UsageError(f"{out}: holds a model that was tuned otherwise; choose another folder")
    return report


def _claim(state: Path, digest: str) -> None:
    marker = state / "digest"
    if not (state / PAIRS).exists():  # nothing has been trained on: a mistake in the command binds nobody
        LocalStorage(marker).replace(digest.encode())
    elif not marker.exists() or marker.read_text() != digest:
        raise UsageError(
            f"{state.parent}: holds an unfinished training with other settings or data; finish it with those, or choose "
            "another folder"
        )


def _read(config: FinetuneConfig, held_out: list[str]) -> list[Pair]:
    """The training pairs; raise `UsageError` where some have no negatives, and no index is given to mine them from."""
    pairs = read_training_data(config.pairs, read_names(config.names), held_out)
    print(f"{len(pairs):,} training pairs from {config.pairs}", file=sys.stderr)
    alone = sum(1 for pair in pairs if not pair.neg)
    if alone and config.index is None and config.group_size > 1:
        raise UsageError(
            f"{alone:,} pairs have no negatives: pass --index, to mine them; or --group-size 1, to train on the other texts "
            "of a batch alone"
        )
    return pairs


def _mine(config: FinetuneConfig, pairs: list[Pair]) -> list[Pair]:
    """The pairs with negatives from the index, up to `group_size` - 1 each."""
    generation = IndexRoot(config.index or "").current()
    encoder = QueryEncoder(generation, device=config.device)
    mining = Mining(config.group_size - 1, config.ranks, config.mined_share, config.seed)
    with contextlib.closing(StepProgress("mining negatives", "pair", len(pairs))) as progress:
        add_negatives(pairs, encoder, GenerationReader(generation), mining, progress.add)
    return pairs


def _write_pairs(config: FinetuneConfig, pairs: Sequence[Pair], held_out: Iterable[str], state: Path) -> None:
    """Set a few pairs aside, with their queries; the others, in an order of their own, are what is trained on."""
    check_held_out(pairs, held_out)
    order = list(pairs)
    random.Random(config.seed).shuffle(order)
    aside = min(MOST_ASIDE, int(ASIDE_SHARE * len(order)))
    apart = {pair.query for pair in order[:aside]}
    kept = [pair for pair in order[aside:] if pair.query not in apart]
    if len(kept) < config.batch_size:
        raise UsageError(f"{len(kept):,} pairs do not fill one batch: lower --batch-size, or give more pairs")
    LocalStorage(state / ASIDE).replace("".join(pair.to_json() + "\n" for pair in order[:aside]).encode())
    LocalStorage(state / PAIRS).replace("".join(pair.to_json() + "\n" for pair in kept).encode())


def _finish(
    config: FinetuneConfig, base: Checkpoint, state: Path, digest: str, held_out: int, seconds: float
) -> FinetuneReport:
    """Write the card and the curves beside the model, copy all of it to its place, then the report; remove the state.

    The tokenizer is the base's, file by file: as the trainer saves it, it cuts and pads texts at the length of queries,
    and only transformers 5 can load it.
    """
    final, out = state / FINAL, state.parent
    for name in TOKENIZER_FILES:
        if Path(base.path, name).is_file():
            shutil.copyfile(Path(base.path, name), final / name)
    curves = read_curves(state / LOG)
    report = FinetuneReport(
        out=config.out,
        model_id=model_id(final),
        base=base.name,
        base_id=base.model_id,
        pairs=_lines_of(state / PAIRS),
        aside=_lines_of(state / ASIDE),
        held_out=held_out,
        steps=curves.steps,
        seconds=round(seconds, 1),
        device=curves.device,
        precision=curves.precision,
        workers=curves.workers,
        resumed_at=curves.resumed_at,
        loss=_ends(curves.loss),
        recall=_ends(curves.recall),
        sparse=_ends(curves.sparse),
        settings=config.decisive(),
    )
    draw_curves(curves, final / report.picture)
    (final / "README.md").write_text(model_card(report.to_dict()), encoding="utf-8")
    (final / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing that reads this folder needs it
    for path in sorted(final.iterdir()):
        shutil.copyfile(path, out / path.name)
        LocalStorage(out / path.name).sync()
    content = json.dumps(report.to_dict() | {"digest": digest}, ensure_ascii=False, indent=1)
    LocalStorage(out / REPORT).replace(content.encode())
    shutil.rmtree(state, ignore_errors=True)
    return report


def _ends(curve: list[tuple[int, float]]) -> list[float]:
    """The first and the last value of a curve; empty for one that is."""
    return [curve[0][1], curve[-1][1]] if curve else []


def _lines_of(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
