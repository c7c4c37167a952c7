"""Fine-tuning the model on tags: pairs and mined negatives -> FlagEmbedding's M3 training under Ray Train -> a folder.

Pairs come from a pairs file or are made from tag records; hard negatives are mined from an index with the model that
built it. The result is a folder in BGE-M3's format with a model card. A killed training goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from danbooru_index.cluster.resources import gpus_for, on_worker
from danbooru_index.cluster.session import ray_session
from danbooru_index.config import Device, Precision, worker_environment
from danbooru_index.errors import BuildFailedError, UsageError, first_line
from danbooru_index.evaluation.evaluate import read_queries
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader
from danbooru_index.ingest.sources import list_inputs
from danbooru_index.model.checkpoint import TOKENIZER_FILES, Checkpoint, longest_text, model_id, resolve_model
from danbooru_index.model.device import cpu_count, probe_device, uncollected
from danbooru_index.progress import StepProgress
from danbooru_index.search.tag_index import QueryEncoder, model_of
from danbooru_index.storage.local import make_folder, owned, remove_tree, replace_file, sync
from danbooru_index.training.model_card import draw_curves, model_card, read_curves
from danbooru_index.training.pairs import (
    ASIDE,
    FAILURE,
    FINAL,
    LOG,
    PAIRS,
    Mining,
    Pair,
    add_negatives,
    check_held_out,
    read_names,
    read_training_data,
)

STATE = ".training"
REPORT = "report.json"
ASIDE_SHARE, MOST_ASIDE = 0.02, 1000
POLL_S = 1.0
LOWEST_TEMPERATURE, HIGHEST_LR, SHORTEST_LENGTH = 1e-4, 0.1, 8


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What `finetune` is asked to do. `pairs`: a pairs file or a tag dump; `model` None: the one that built the index.

    `group_size`: texts a query, one of them its answer; `batch_size`: queries a device and step; lengths in tokens;
    `warmup`: the share of the steps in which the learning rate rises; `ranks`, `mined_share`: see `Mining`.
    """

    pairs: str
    out: str
    index: str | None = None
    model: str | None = None
    names: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    lr: float = 1e-5
    batch_size: int = 32
    group_size: int = 8
    epochs: float = 1.0
    temperature: float = 0.02
    query_length: int = 64
    passage_length: int = 128
    warmup: float = 0.1
    save_steps: int = 200
    ranks: tuple[int, int] = (2, 20)
    mined_share: float = 0.7
    self_distill: bool = True
    seed: int = 0
    num_gpus: int | None = None
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "group_size", "epochs", "temperature", "save_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        if self.temperature < LOWEST_TEMPERATURE or self.lr > HIGHEST_LR:
            raise UsageError(
                f"--temperature is at least {LOWEST_TEMPERATURE}, --lr at most {HIGHEST_LR}: none would train"
            )
        if min(self.query_length, self.passage_length) < SHORTEST_LENGTH or not 0 <= self.seed < 1 << 32:
            raise UsageError(
                f"--query-length, --passage-length: at least {SHORTEST_LENGTH} tokens; --seed from 0 to 2^32"
            )
        if self.num_gpus is not None and self.num_gpus < 1:
            raise UsageError(f"--num-gpus must be at least 1, not {self.num_gpus}")
        if not 1 <= self.ranks[0] <= self.ranks[1] or not 0 <= self.mined_share <= 1:
            raise UsageError("--ranks takes two ranks, the first not above the second; --mined-share a share of 1")
        if self.index is None and self.model is None:
            raise UsageError("which model is to be tuned: pass --index, whose model it is then, or --model")

    def decisive(self) -> dict[str, Any]:
        """The settings that a resumed training must share: all but where it runs."""
        left_out = {"out", "num_gpus", "device", "precision", "address", "save_steps"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(slots=True)
class FinetuneReport:
    """What a training did. Of the pairs set aside, before and after: `recall`, Recall@10 among their texts by dense score;
    `sparse`, the share of those texts that have any sparse weight."""

    out: str
    model_id: str
    base: str
    base_id: str
    pairs: int
    aside: int
    held_out: int
    steps: int
    seconds: float
    device: str
    precision: str
    workers: int
    resumed_at: int
    loss: list[float]
    recall: list[float]
    sparse: list[float]
    settings: dict[str, Any] = field(default_factory=dict)
    picture: str = "curves.svg"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        resumed = f" (gone on from step {self.resumed_at:,})" if self.resumed_at else ""
        lines = [
            f"{self.out}: tuned from {self.base} (id {self.base_id[:12]}), now id {self.model_id[:12]}",
            f"  pairs     {self.pairs:,}, and {self.aside:,} set aside; {self.held_out:,} held-out queries kept out",
            f"  training  {self.steps:,} steps in {self.seconds:,.0f} s{resumed}, {self.precision} on "
            f"{self.workers} x {self.device}",
            f"  loss      {self.loss[0]:.3f} -> {self.loss[1]:.3f}; curves in {self.out}/{self.picture}",
        ]
        if self.recall:
            before, after = self.recall
            lines.append(f"  found     {before:.1%} -> {after:.1%} of the pairs set aside, among the first 10")
        if self.sparse:
            before, after = self.sparse
            lines.append(
                f"  sparse    {before:.1%} -> {after:.1%} of their texts have sparse weights{_fewer(before, after)}"
            )
        lines.append(f"  next      danbooru-index build SHARDS --index INDEX --model {self.out}")
        return "\n".join(lines)


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
    make_folder(out)
    make_folder(state)
    with owned(state):
        _claim(state, digest)
        data = None if (state / PAIRS).exists() else _read(config, held_out)
        with ray_session(config.address):
            gpus = gpus_for(config.device, config.num_gpus)
            if data is not None:
                if config.index is not None and config.group_size > 1:
                    data = on_worker(1, 1, _mine, config, data) if gpus else _mine(config, data)
                _write_pairs(config, data, held_out, state)
            if not (state / FINAL).is_dir():
                _train(config, base, state, gpus)
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
        replace_file(marker, digest.encode())
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
    replace_file(state / ASIDE, "".join(pair.to_json() + "\n" for pair in order[:aside]).encode())
    replace_file(state / PAIRS, "".join(pair.to_json() + "\n" for pair in kept).encode())


def _train(config: FinetuneConfig, base: Checkpoint, state: Path, gpus: int) -> None:
    """Run Ray Train's worker group to its end; raise `BuildFailedError` that says what to do."""
    with uncollected():
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from danbooru_index.training.trainer import train

    (state / FAILURE).unlink(missing_ok=True)
    settings = asdict(config) | {
        "base": base.path,
        "state": str(state.resolve()),
        "device": "cuda" if gpus else "cpu",
        "precision": config.precision.value if gpus else probe_device(Device.CPU, config.precision).precision,
        "threads": 0 if gpus else cpu_count(),
    }
    trainer = TorchTrainer(
        train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=gpus or 1, use_gpu=bool(gpus)),
        run_config=RunConfig(
            name="run",
            storage_path=str((state / "ray").resolve()),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )
    try:
        with _followed(state / LOG):
            trainer.fit()
    except Exception as error:  # Ray Train has a class for each way to fail, and may chain another's
        raise _failure(state, error) from None


def _failure(state: Path, error: Exception) -> BuildFailedError:
    """What failed: as the worker left it, else (it was killed) as Ray says it."""
    try:
        note = json.loads((state / FAILURE).read_text())
    except (OSError, ValueError):
        note = {"memory": "OutOfMemory" in str(error) or "died" in str(error), "error": first_line(error)}
    if note["memory"]:
        remedy = "out of memory, as it seems: lower --batch-size, then --group-size, and start again in another folder"
    else:
        remedy = "the same command goes on from the last checkpoint"
    return BuildFailedError(f"the training stopped ({note['error']}): {remedy}")


@contextlib.contextmanager
def _followed(log: Path) -> Iterator[None]:
    """Progress on stderr while the block runs, from what the first worker logs."""
    ended = threading.Event()

    def follow() -> None:
        with contextlib.closing(StepProgress("training", "step", 0)) as progress:
            while not ended.wait(POLL_S):
                curves = read_curves(log)
                progress.total = curves.steps
                progress.show(curves.at, f"loss {curves.loss[-1][1]:.3f}" if curves.loss else "loading the model")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
        sync(out / path.name)
    content = json.dumps(report.to_dict() | {"digest": digest}, ensure_ascii=False, indent=1)
    replace_file(out / REPORT, content.encode())
    remove_tree(state)
    return report


def _fewer(before: float, after: float) -> str:
    if after > before - 0.1:
        return ""
    return ": pairs whose two sides share no token drive them to nothing; a hybrid search then rests on the other modes"


def _ends(curve: list[tuple[int, float]]) -> list[float]:
    """The first and the last value of a curve; empty for one that is."""
    return [curve[0][1], curve[-1][1]] if curve else []


def _lines_of(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
