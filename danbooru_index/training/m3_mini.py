"""How `m3-mini` is made: tokenizer, token vectors as means, `finetune`; with its seed.

The XLM-R begins as the mean of its token vectors, which are learned in minutes: attention starts
uniform, values pass through, and `finetune` goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.sources import list_inputs, valid_records
from danbooru_index.machine import cpu_count
from danbooru_index.model.checkpoint import model_id
from danbooru_index.records import Record
from danbooru_index.storage.local import LocalStorage
from danbooru_index.training.data import held_out_queries, stamps
from danbooru_index.training.finetune import finetune
from danbooru_index.training.finetune_config import FinetuneConfig, FinetuneReport
from danbooru_index.training.mini_tokenizer import token_rows, train_tokenizer
from danbooru_index.training.mini_vectors import (
    MiniRecipe,
    WeightedPairs,
    learn_means,
    with_prior,
    with_rarity,
)
from danbooru_index.training.mini_weights import refit_sparse, ship, write_base
from danbooru_index.training.pairs import Pair, bare, make_pairs, normal, read_names


def make_mini(
    records: Sequence[str],
    names: Sequence[str],
    held_out: Sequence[str],
    out: Path,
    recipe: MiniRecipe,
) -> FinetuneReport:
    """Make the model from tag dumps and further names, and write it to `out` in half precision.

    `held_out`: queries files; what equals one of their queries is trained on nowhere, the tokenizer
    included.
    """
    torch.set_num_threads(cpu_count())
    work = out.with_name(f"{out.name}.work")
    _begin_work(work, [*list_inputs(tuple(records)), *map(Path, (*names, *held_out))], recipe)
    read = list(valid_records(tuple(records)))
    if not read:
        raise InputError(
            f"{', '.join(records)}: no usable record; see the reasons with danbooru-index prepare"
        )
    called = read_names(names)
    queries = {normal(query) for query in held_out_queries(held_out)}
    training = _draw_weights(read, called, queries, recipe)
    base, pairs = work / "base", work / "pairs.jsonl"
    texts = [record.text for record in read]
    if not pairs.exists():
        train_tokenizer(read, [pair.query for pair in training.pairs], base, recipe.vocabulary)
        rows = token_rows(base, texts)
        vectors = learn_means(base, training, texts, recipe)
        write_base(
            base,
            with_rarity(with_prior(base, vectors, read, rows, recipe), rows, recipe),
            rows,
            recipe,
        )
        lines = (pair.to_json() + "\n" for pair in _drawn(training, texts, recipe))
        LocalStorage(pairs).replace("".join(lines).encode())
    report = finetune(
        FinetuneConfig(
            pairs=str(pairs),
            out=str(work / "tuned"),
            model=str(base),
            held_out=tuple(held_out),
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            group_size=1 + recipe.negatives,
            temperature=recipe.temperature,
            query_length=recipe.query_length,
            passage_length=recipe.passage_length,
            seed=recipe.seed,
        )
    )
    refit_sparse(work / "tuned", token_rows(base, texts), recipe)
    ship(work / "tuned", out)
    (out / "README.md").write_text(_card(out, [*records, *names], report, recipe), encoding="utf-8")
    return report


def _begin_work(work: Path, files: Sequence[Path], recipe: MiniRecipe) -> None:
    """The folder of what is made on the way, which a run that was killed goes on from; empty where
    it was made from other files, or by another recipe: so that no held-out query gets in by way of
    old pairs.
    """
    made_from = json.dumps([stamps(files), asdict(recipe)], sort_keys=True).encode()
    marker = work / "made-from.json"
    if marker.is_file() and marker.read_bytes() != made_from:
        shutil.rmtree(work)
    elif not marker.is_file() and work.is_dir() and any(work.iterdir()):
        raise UsageError(
            f"{work}: not empty, and not of a run of this kind: move it away, or choose another"
            " --out"
        )
    work.mkdir(parents=True, exist_ok=True)
    if not marker.is_file():
        LocalStorage(marker).replace(made_from)


def _draw_weights(
    records: Iterable[Record], names: dict[str, list[str]], held_out: set[str], recipe: MiniRecipe
) -> WeightedPairs:
    """How often each pair is drawn: artists less, what a picture shows more."""
    pairs: list[Pair] = []
    weights: list[float] = []
    by_category = {"画师": recipe.artist_weight, "角色": 1.0, "作品": 1.0}
    for record in records:
        weight = by_category.get(record.category, recipe.general_weight)
        own = normal(record.tag)
        weight *= ((record.post_count or 0) + 10.0) ** recipe.popularity
        for pair in make_pairs([record], names, held_out):
            pairs.append(pair)
            weights.append(weight * (recipe.own_name_weight if normal(pair.query) == own else 1.0))
    total = np.array(weights)
    return WeightedPairs(pairs, total / total.sum())


def _drawn(training: WeightedPairs, texts: list[str], recipe: MiniRecipe) -> Iterator[Pair]:
    """Pairs drawn by weight, each with random texts that are not its answer."""
    rng = np.random.default_rng(recipe.seed)
    for i in rng.choice(len(training.pairs), recipe.pairs, p=training.weights).tolist():
        pair = training.pairs[i]
        answers = {bare(text) for text in pair.pos}
        drawn = (texts[j] for j in rng.integers(len(texts), size=4 * recipe.negatives).tolist())
        others = [text for text in drawn if bare(text) not in answers]
        yield Pair(pair.query, pair.pos, others[: recipe.negatives])


def _card(out: Path, inputs: Sequence[str], report: FinetuneReport, recipe: MiniRecipe) -> str:
    """The model card: what it is, made of what, in which steps, and its id."""
    settings = "\n".join(f"- `{name}`: {value}" for name, value in asdict(recipe).items())
    return f"""---
library_name: FlagEmbedding
tags: [bge-m3, danbooru]
---

# {out.name}

A small model of Danbooru's tags in BGE-M3's format: an XLM-R of {recipe.layers} layers,
{recipe.hidden} wide, with a sparse and a ColBERT head and a tokenizer of its own. It knows what
tags are called in English, Chinese and Japanese; no sentences, and no name that it was never told.
Model id, over weights, heads, tokenizer and configuration: `{model_id(out)}`.

Loads as `FlagEmbedding.BGEM3FlagModel(FOLDER)`, and as
`danbooru-index build SHARDS --index INDEX --model FOLDER`.

## Data

{", ".join(f"`{Path(path).name}`" for path in inputs)}: {report.pairs + report.aside:,} pairs of a
query and a tag's text drawn for the last step. {report.held_out:,} held-out queries, in any
spelling, are in no pair; that was checked.

## Training

Token vectors as a mean: {recipe.means_steps:,} steps. Then `danbooru-index finetune`:
{report.steps:,} steps, {report.precision}, {report.workers} x {report.device},
{report.seconds:,.0f} s; loss {report.loss[0]:.3f} to {report.loss[1]:.3f}. Then the
sparse head again, to the rarity of tokens.
The recipe is `danbooru_index/training/m3_mini.py`, run by `jobs/train_m3_mini.py`:

{settings}
"""
