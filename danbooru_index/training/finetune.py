"""Fine-tuning on tags: pairs, mined negatives -> FlagEmbedding's training -> a folder.

Pairs come from a pairs file or are made from tag records; hard negatives are mined from an index
with the model that built it. The result is a folder in BGE-M3's format with a model card. A killed
training goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from danbooru_index.errors import UsageError
from danbooru_index.model.checkpoint import (
    TOKENIZER_FILES,
    Checkpoint,
    longest_text,
    model_id,
    resolve_model,
)
from danbooru_index.storage.local import LocalStorage
from danbooru_index.training.data import held_out_queries, read_pairs, training_digest, write_pairs
from danbooru_index.training.finetune_config import FinetuneConfig, FinetuneReport
from danbooru_index.training.model_card import draw_curves, model_card, read_curves
from danbooru_index.training.negatives import mine, model_of_index
from danbooru_index.training.pairs import ASIDE, FINAL, LOG, PAIRS
from danbooru_index.training.worker_group import trainers

STATE = ".training"
REPORT = "report.json"


def finetune(config: FinetuneConfig) -> FinetuneReport:
    """Train, or go on with a training that was killed; return the report.

    Raises `UsageError`, `InputError`, `ModelError`, `DeviceError`, `ClusterError`, or
    `BuildFailedError` when the training itself fails; the same call goes on from its last
    checkpoint.
    """
    started = time.monotonic()
    out, state = Path(config.out), Path(config.out) / STATE
    base = resolve_model(config.model or model_of_index(config.index or ""))
    if max(config.query_length, config.passage_length) > longest_text(base):
        raise UsageError(
            f"--query-length, --passage-length: {base.name} takes at most {longest_text(base)}"
            " tokens"
        )
    held_out = held_out_queries(config.held_out)
    digest = training_digest(config, base.model_id)
    if (out / REPORT).is_file():
        return _finished(out, digest)
    if out.exists() and any(out.iterdir()) and not state.is_dir():
        raise UsageError(f"{out}: not empty; choose another folder for the tuned model")
    LocalStorage(out).make_folder()
    LocalStorage(state).make_folder()
    with LocalStorage(state).owned():
        _claim(state, digest)
        data = None if (state / PAIRS).exists() else read_pairs(config, held_out)
        with trainers(config) as group:
            if data is not None:
                if config.index is not None and config.group_size > 1:
                    data = group.call(mine, config, data)
                write_pairs(config, data, held_out, state)
            if not (state / FINAL).is_dir():
                group.train(base, state)
        return _finish(config, base, state, digest, len(held_out), time.monotonic() - started)


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
    if not (state / PAIRS).exists():
        # nothing has been trained on: a mistake in the command binds nobody
        LocalStorage(marker).replace(digest.encode())
    elif not marker.exists() or marker.read_text() != digest:
        raise UsageError(
            f"{state.parent}: holds an unfinished training with other settings or data; finish it"
            " with those, or choose another folder"
        )


def _finish(
    config: FinetuneConfig,
    base: Checkpoint,
    state: Path,
    digest: str,
    held_out: int,
    seconds: float,
) -> FinetuneReport:
    """Write the card and the curves beside the model, copy all of it to its place, then the report;
    remove the state.

    The tokenizer is the base's, file by file: as the trainer saves it, it cuts and pads texts at
    the length of queries, and only transformers 5 can load it.
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
    # a pickle: nothing that reads this folder needs it
    (final / "training_args.bin").unlink(missing_ok=True)
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
