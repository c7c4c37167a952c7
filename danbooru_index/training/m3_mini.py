"""How `m3-mini` is made: a tokenizer of its own, token vectors learned as a mean, then `finetune`; a recipe with its seed.

The XLM-R begins as the mean of its token vectors, which are learned in minutes: attention starts uniform, values pass
through, and `finetune` goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danbooru_index.errors import InputError, UsageError
from danbooru_index.evaluation.evaluate import read_queries
from danbooru_index.ingest.sources import list_inputs, read_records
from danbooru_index.model.checkpoint import model_id
from danbooru_index.model.device import cpu_count
from danbooru_index.progress import StepProgress
from danbooru_index.records import Record
from danbooru_index.storage.local import replace_file
from danbooru_index.training.finetune import FinetuneConfig, FinetuneReport, finetune, stamps
from danbooru_index.training.pairs import Pair, bare, make_pairs, normal, read_names

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
RESERVED = 4  # dimensions that words do not use: two axes, of popularity and of rarity
POPULARITY, RARITY = 0, 1
RARITY_TEXTS = 5000
RIDGE = 1e-3
DAMPING = 2.0
LARGEST_SHARE = 0.5
LONGEST_PIECE = 6  # characters: names that were never seen fall into pieces that were

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
TokenRows = list[list[int]]


@dataclass(frozen=True, slots=True)
class MiniRecipe:
    """Everything that decides the weights, with the data; the defaults are those of m3-mini.

    `means_*`: the token vectors' own training, batches of `means_batch` pairs among `means_others` texts more; `gain`: how
    much more of the mean than of itself a token takes in each layer at first; `prior`: how much a category's popularity
    counts, `token_prior`: that of other tokens; `rarity`: the sparse weight of the rarest token at first,
    `rarity_share`: of its length that says so.
    `*_weight`: how often a pair is drawn, by its category and kind; `popularity`: the power of its post count by which it
    is; `negatives`: texts at random beside each answer.
    """

    vocabulary: int = 20_000  # and a token for each category
    hidden: int = 256
    layers: int = 2
    heads: int = 4
    intermediate: int = 1024
    positions: int = 514
    gain: float = 4.0
    prior: float = 12.0
    token_prior: float = 0.07
    rarity: float = 0.3
    rarity_share: float = 0.35
    means_steps: int = 4500
    means_batch: int = 1024
    means_others: int = 1024
    means_lr: float = 0.06
    means_temperature: float = 0.05
    query_length: int = 24
    passage_length: int = 40
    artist_weight: float = 0.1
    general_weight: float = 4.0
    own_name_weight: float = 0.5
    popularity: float = 0.2
    pairs: int = 20_000
    negatives: int = 2
    batch_size: int = 256
    lr: float = 1e-5
    temperature: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Training:
    """Pairs, and how often each is drawn, [pairs], adding up to 1."""

    pairs: list[Pair]
    weights: Vector


def make_mini(
    records: Sequence[str], names: Sequence[str], held_out: Sequence[str], out: Path, recipe: MiniRecipe
) -> FinetuneReport:
    """Make the model from tag dumps and further names, and write it to `out` in half precision.

    `held_out`: queries files; what equals one of their queries is trained on nowhere, the tokenizer included.
    """
    torch.set_num_threads(cpu_count())
    work = out.with_name(f"{out.name}.work")
    inputs = list_inputs(tuple(records))
    _begin_work(work, [*inputs, *map(Path, (*names, *held_out))], recipe)
    read = [item for path in inputs for _, item in read_records(path, {}) if isinstance(item, Record)]
    if not read:
        raise InputError(f"{', '.join(records)}: no usable record; see the reasons with danbooru-index prepare")
    called = read_names(names)
    queries = {normal(query.text) for path in held_out for query in read_queries(path)}
    training = _draw_weights(read, called, queries, recipe)
    base, pairs = work / "base", work / "pairs.jsonl"
    texts = [record.text for record in read]
    if not pairs.exists():
        train_tokenizer(read, [pair.query for pair in training.pairs], base, recipe.vocabulary)
        rows = token_rows(base, texts)
        vectors = learn_means(base, training, texts, recipe)
        write_base(base, with_rarity(with_prior(base, vectors, read, rows, recipe), rows, recipe), rows, recipe)
        lines = (pair.to_json() + "\n" for pair in _drawn(training, texts, recipe))
        replace_file(pairs, "".join(lines).encode())
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
    """The folder of what is made on the way, which a run that was killed goes on from; empty where it was made from other
    files, or by another recipe: so that no held-out query gets in by way of old pairs."""
    made_from = json.dumps([stamps(files), asdict(recipe)], sort_keys=True).encode()
    marker = work / "made-from.json"
    if marker.is_file() and marker.read_bytes() != made_from:
        shutil.rmtree(work)
    elif not marker.is_file() and work.is_dir() and any(work.iterdir()):
        raise UsageError(f"{work}: not empty, and not of a run of this kind: move it away, or choose another --out")
    work.mkdir(parents=True, exist_ok=True)
    if not marker.is_file():
        replace_file(marker, made_from)


def _draw_weights(
    records: Iterable[Record], names: dict[str, list[str]], held_out: set[str], recipe: MiniRecipe
) -> _Training:
    """All pairs: artists' names less often, what a picture shows more often, and a tag's own words half as often."""
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
    return _Training(pairs, total / total.sum())


def _drawn(training: _Training, texts: list[str], recipe: MiniRecipe) -> Iterator[Pair]:
    """Pairs by their weights, each with texts at random that are not its answer: so that the prior is kept."""
    chance = np.random.default_rng(recipe.seed)
    for i in chance.choice(len(training.pairs), recipe.pairs, p=training.weights).tolist():
        pair = training.pairs[i]
        answers = {bare(text) for text in pair.pos}
        drawn = (texts[j] for j in chance.integers(len(texts), size=4 * recipe.negatives).tolist())
        others = [text for text in drawn if bare(text) not in answers]
        yield Pair(pair.query, pair.pos, others[: recipe.negatives])


def train_tokenizer(records: Sequence[Record], queries: Sequence[str], folder: Path, vocabulary: int) -> None:
    """A unigram tokenizer with XLM-R's special tokens: a token for each category, no word boundaries, split where the
    script changes."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, trainers
    from tokenizers.models import Unigram
    from tokenizers.processors import TemplateProcessing

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(" - ", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[_\s]+"), "removed"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.UnicodeScripts(),
        ]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS.values()),
        unk_token=SPECIAL_TOKENS["unk_token"],
        max_piece_length=LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator([record.text.partition("】")[2] for record in records] + list(queries), trainer)
    categories = sorted({record.category for record in records} - {""})
    tokenizer.add_tokens([AddedToken(_category_token(name), normalized=False) for name in categories])
    tokenizer.add_special_tokens(["<mask>"])
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    named = {**SPECIAL_TOKENS, "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _category_token(category: str) -> str:
    return f"【{category}】"


def learn_means(folder: Path, training: _Training, texts: list[str], recipe: MiniRecipe) -> torch.Tensor:
    """Token vectors [vocabulary, hidden] whose normalised mean over a query is near that over its answer, and not over
    the other answers of a batch or over texts at random (InfoNCE). The last dimensions, `RESERVED`, are left at zero."""
    torch.manual_seed(recipe.seed)
    chance = np.random.default_rng(recipe.seed)
    tokenizer = _tokenizer(folder)

    def ids(texts: list[str], longest: int) -> list[list[int]]:
        tokenizer.enable_truncation(longest)
        return [encoding.ids[1:-1] or [3] for encoding in tokenizer.encode_batch(texts)]

    queries = ids([pair.query for pair in training.pairs], recipe.query_length)
    answers = [ids(pair_texts, recipe.passage_length) for pair_texts in (pair.pos for pair in training.pairs)]
    others = ids(texts, recipe.passage_length)
    vectors = torch.nn.Parameter(torch.randn(tokenizer.get_vocab_size(), recipe.hidden - RESERVED))
    optimizer = torch.optim.AdamW([vectors], lr=recipe.means_lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    steps, size = recipe.means_steps, recipe.means_batch
    with contextlib.closing(StepProgress("token vectors", "step", steps)) as progress:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.means_lr * min(1.0, step / 50) * max(0.02, 1 - step / steps)
            chosen = chance.choice(len(queries), size, p=training.weights).tolist()
            drawn = [answers[i][chance.integers(len(answers[i]))] for i in chosen]
            drawn += [others[i] for i in chance.integers(len(others), size=recipe.means_others)]
            scores = _means(vectors, [queries[i] for i in chosen]) @ _means(vectors, drawn).T
            loss = torch.nn.functional.cross_entropy(scores / recipe.means_temperature, torch.arange(size))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.add(1)
    return torch.nn.functional.pad(_normed(vectors.detach()), (0, RESERVED))


def with_prior(
    folder: Path, vectors: torch.Tensor, records: Sequence[Record], rows: TokenRows, recipe: MiniRecipe
) -> torch.Tensor:
    """The vectors with how popular their tokens' tags are along an axis.

    People ask for what is drawn often: all else equal, 【服饰】 is meant before 【画师】. A category's token takes -1 to 1 of
    its length for the mean logarithm of its tags' post counts, any other `token_prior` times what a ridge regression says
    that it adds to that (at most `LARGEST_SHARE`), and keeps its direction with what is left.
    """
    tokenizer = _tokenizer(folder)
    by_category: dict[str, list[float]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(_log_posts(record))
    means = {category: sum(logs) / len(logs) for category, logs in by_category.items()}
    low, high = min(means.values(), default=0.0), max(means.values(), default=0.0)
    above = np.array([_log_posts(record) - means[record.category] for record in records])
    added = recipe.token_prior * _least_squares(rows, above, len(vectors))
    shares = torch.from_numpy(added.clip(-LARGEST_SHARE, LARGEST_SHARE)).float()
    for category, mean in means.items():
        token = tokenizer.token_to_id(_category_token(category))
        if token is not None:
            shares[token] = (2 * mean - low - high) / (high - low) if high > low else 0.0
    return _along(POPULARITY, shares, vectors)


def _log_posts(record: Record) -> float:
    return math.log1p(record.post_count or 0)


def _least_squares(rows: TokenRows, targets: Vector, vocabulary: int) -> Vector:
    """What each token adds to a target, [vocabulary], where a text's is the mean over its tokens: damped least squares."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import lsqr

    words = [row[1:-1] or [3] for row in rows]
    lengths = np.array([len(row) for row in words])
    tokens, ends = np.concatenate(words), np.concatenate([[0], np.cumsum(lengths)])
    of_text = csr_matrix((np.repeat(1 / lengths, lengths), tokens, ends), shape=(len(words), vocabulary))
    solution: Vector = lsqr(of_text, targets, damp=DAMPING, iter_lim=200)[0]
    return solution


def _along(axis: int, shares: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Vectors with these shares, [vocabulary] between -1 and 1, of their length along an axis."""
    length, share = math.sqrt(vectors.shape[1]), shares.unsqueeze(1)
    return (1 - share**2).clamp_min(0).sqrt() * vectors + length * share * _axis(vectors.shape[1], axis)


def with_rarity(vectors: torch.Tensor, rows: TokenRows, recipe: MiniRecipe) -> torch.Tensor:
    """The vectors with each token's rarity, between -1 and 1 times `rarity_share`, along an axis that attention does not
    mix: what the sparse head reads."""
    shares = torch.from_numpy(recipe.rarity_share * (2 * _rarity(rows, len(vectors)) - 1)).float()
    return _along(RARITY, shares, vectors)


def _rarity(rows: TokenRows, vocabulary: int) -> Vector:
    """Inverse document frequency of each token, [vocabulary], from 0 (in every text) to 1 (in one)."""
    seen = np.bincount([token for row in rows for token in set(row)], minlength=vocabulary)
    return np.log(len(rows) / np.maximum(seen, 1)) / math.log(max(2, len(rows)))


def token_rows(folder: Path, texts: list[str]) -> TokenRows:
    """The token ids of each text, `<s>` and `</s>` around them."""
    return [encoding.ids for encoding in _tokenizer(folder).encode_batch(texts)]


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _axis(hidden: int, which: int) -> torch.Tensor:
    """A unit vector in the reserved dimensions: of mean zero, so that layer norms keep its direction."""
    axis = torch.zeros(hidden)
    axis[hidden - 2 * which - 2 : hidden - 2 * which] = torch.tensor([-1.0, 1.0]) / math.sqrt(2)
    return axis


def _normed(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(vectors, vectors.shape[-1:])


def _means(vectors: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    """The normalised mean of each row's token vectors, [rows, hidden]."""
    flat = torch.tensor([token for row in rows for token in row])
    places = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    sums = torch.zeros(len(rows), vectors.shape[1]).index_add(0, places, _normed(vectors[flat]))
    return torch.nn.functional.normalize(sums, dim=-1)


def write_base(folder: Path, vectors: torch.Tensor, rows: TokenRows, recipe: MiniRecipe) -> None:
    """An XLM-R whose three outputs are made of the mean of these token vectors, and of each token's own; beside it a
    ColBERT head that passes through, and a sparse head that weighs tokens by their rarity in `rows`, the
    token ids of texts."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(recipe.seed)
    config = XLMRobertaConfig(
        vocab_size=len(vectors),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.positions,
        type_vocab_size=1,
        layer_norm_eps=0.01,  # `<s>` starts at zero, where a smaller one makes its gradient explode
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["XLMRobertaModel"],
    )
    model = XLMRobertaModel(config)
    colbert, sparse = torch.nn.Linear(recipe.hidden, recipe.hidden), torch.nn.Linear(recipe.hidden, 1)
    with torch.no_grad():
        _begin_as_mean(model, vectors, recipe)
        colbert.weight.copy_(_without_rarity(recipe.hidden))
        torch.nn.init.zeros_(colbert.bias)
        _weigh_by_rarity(sparse, model, rows, recipe)
    model.save_pretrained(folder)
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")


def refit_sparse(folder: Path, rows: TokenRows, recipe: MiniRecipe) -> None:
    """Fit the sparse head of a tuned model to the rarity of tokens again.

    Most pairs share no token across languages, and on those the training drove every weight to zero (measured).
    """
    from transformers import XLMRobertaModel

    sparse = torch.nn.Linear(recipe.hidden, 1)
    with torch.no_grad():
        _weigh_by_rarity(sparse, XLMRobertaModel.from_pretrained(folder).eval(), rows, recipe)
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")


def _begin_as_mean(model: Any, vectors: torch.Tensor, recipe: MiniRecipe) -> None:
    """Uniform attention, values passed through times `gain`, and feed-forward layers that begin at nothing."""
    wide = math.sqrt(recipe.hidden)
    embeddings = model.embeddings
    embeddings.word_embeddings.weight.copy_(vectors)
    embeddings.word_embeddings.weight[: len(SPECIAL_TOKENS) - 1] = 0
    embeddings.position_embeddings.weight.zero_()
    embeddings.token_type_embeddings.weight.zero_()
    for layer in model.encoder.layer:
        attention = layer.attention.self
        for part in (attention.query, attention.key):
            part.weight.normal_(0, 0.3 / wide)
        attention.value.weight.copy_(recipe.gain * _without_rarity(recipe.hidden))
        layer.attention.output.dense.weight.copy_(torch.eye(recipe.hidden))
        layer.intermediate.dense.weight.normal_(0, 1 / wide)
        layer.output.dense.weight.normal_(0, 0.02 / math.sqrt(recipe.intermediate))
        for part in (attention.query, attention.key, attention.value, layer.attention.output.dense, layer.output.dense):
            part.bias.zero_()
    model.encoder.layer[0].attention.output.dense.bias.copy_(recipe.prior * _axis(recipe.hidden, POPULARITY))


def _weigh_by_rarity(head: torch.nn.Linear, model: Any, rows: TokenRows, recipe: MiniRecipe) -> None:
    """Fit the sparse head to inverse document frequencies, by ridge regression over the hidden states of some texts.

    Plain least squares has no single solution, since a layer norm's outputs add up to zero: it gave coefficients that
    cancelled out in fp32 and were noise in bf16.
    """
    rarity = recipe.rarity * _rarity(rows, model.config.vocab_size)
    some = np.random.default_rng(recipe.seed).choice(len(rows), min(RARITY_TEXTS, len(rows)), replace=False)
    states, targets = [], []
    for i in some.tolist():
        row = torch.tensor([rows[i][: recipe.positions - 2]])
        states.append(model(row).last_hidden_state[0, 1:-1])
        targets.append(torch.from_numpy(rarity[row[0, 1:-1].numpy()]))
    inputs = torch.nn.functional.pad(torch.cat(states), (0, 1), value=1.0).double()
    ridge = RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ torch.cat(targets)).float()
    head.weight.copy_(solution[:-1].unsqueeze(0))
    head.bias.copy_(solution[-1:])


def ship(tuned: Path, out: Path) -> None:
    """A tuned model as the package carries it: the weights in float16, and only what a model folder needs."""
    from safetensors.torch import load_file, save_file

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    weights = {name: value.half() for name, value in load_file(tuned / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "colbert_linear.pt", "sparse_linear.pt"):
        shutil.copyfile(tuned / name, out / name)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB", file=sys.stderr)


def _card(out: Path, inputs: Sequence[str], report: FinetuneReport, recipe: MiniRecipe) -> str:
    """The model card: what it is, made of what, in which steps, and its id."""
    settings = "\n".join(f"- `{name}`: {value}" for name, value in asdict(recipe).items())
    return f"""---
library_name: FlagEmbedding
tags: [bge-m3, danbooru]
---

# {out.name}

A small model of Danbooru's tags in BGE-M3's format: an XLM-R of {recipe.layers} layers, {recipe.hidden} wide, with a sparse
and a ColBERT head and a tokenizer of its own. It knows what tags are called in English, Chinese and Japanese; no sentences,
and no name that it was never told.
Model id, over weights, heads, tokenizer and configuration: `{model_id(out)}`.

Loads as `FlagEmbedding.BGEM3FlagModel(FOLDER)`, and as `danbooru-index build SHARDS --index INDEX --model FOLDER`.

## Data

{", ".join(f"`{Path(path).name}`" for path in inputs)}: {report.pairs + report.aside:,} pairs of a query and a tag's text drawn
for the last step. {report.held_out:,} held-out queries, in any spelling, are in no pair; that was checked.

## Training

Token vectors as a mean: {recipe.means_steps:,} steps. Then `danbooru-index finetune`: {report.steps:,} steps,
{report.precision}, {report.workers} x {report.device}, {report.seconds:,.0f} s; loss {report.loss[0]:.3f} to
{report.loss[1]:.3f}. Then the sparse head again, to the rarity of tokens.
The recipe is `danbooru_index/training/m3_mini.py`, run by `jobs/train_m3_mini.py`:

{settings}
"""


def _without_rarity(hidden: int) -> torch.Tensor:
    """The identity but for the axis of rarity, which is left out."""
    axis = _axis(hidden, RARITY)
    return torch.eye(hidden) - torch.outer(axis, axis)
