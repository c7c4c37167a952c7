"""One worker of a fine-tuning: FlagEmbedding's M3 trainer on its device.

Runs inside Ray Train's worker group; called by `finetune`. The first worker writes what it measures
to a log, saves checkpoints, and marks each as complete; a training that was killed goes on from the
last complete one. In one module: all of it runs in the worker, and only there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments
from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
    EncoderOnlyEmbedderM3ModelArguments,
    EncoderOnlyEmbedderM3Runner,
    EncoderOnlyEmbedderM3TrainingArguments,
)
from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
from transformers import TrainerCallback

from danbooru_index.choices import Precision
from danbooru_index.machine import cpu_name
from danbooru_index.model.weights import complete_weights
from danbooru_index.training.pairs import ASIDE, FAILURE, FINAL, LOG, PAIRS

CHECKPOINTS, COMPLETE = "checkpoints", "complete"
KEPT_CHECKPOINTS = 2
TEXTS_PER_ENCODING = 256
RECALL_AT = 10


class UnifiedModel(EncoderOnlyEmbedderM3Model):  # type: ignore[misc]
    """FlagEmbedding's training model, its sparse output made in one row a text.

    The original builds [texts, tokens, vocabulary] while training: 1 GB for 64 texts of 16 tokens
    and BGE-M3's 250,002 tokens. The maximum and its gradient are the same here, in [texts,
    vocabulary].
    """

    # asked for by the trainer when it resumes; only models of transformers have it
    _keys_to_ignore_on_save = None

    def _sparse_embedding(
        self, hidden_state: torch.Tensor, input_ids: torch.Tensor, return_embedding: bool = True
    ) -> torch.Tensor:
        weights = torch.relu(self.sparse_linear(hidden_state)).squeeze(-1).float()
        if not return_embedding:
            return weights.unsqueeze(-1)
        rows = torch.zeros(len(input_ids), self.vocab_size, device=weights.device)
        rows = rows.scatter_reduce(1, input_ids, weights, reduce="amax")
        counted = torch.ones(self.vocab_size, device=weights.device)
        specials = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
        counted[[getattr(self.tokenizer, name) for name in specials]] = 0
        return rows * counted


class Runner(EncoderOnlyEmbedderM3Runner):  # type: ignore[misc]
    """FlagEmbedding's runner with `UnifiedModel`, in fp32; what has no gradient is frozen."""

    def load_tokenizer_and_model(self) -> tuple[Any, Any]:
        tokenizer, model = super().load_tokenizer_and_model()
        complete_weights(model, Path(self.model_args.model_name_or_path))
        model.__class__ = UnifiedModel
        # weights kept in half precision, as m3-mini's, are loaded so: small steps would round to
        # nothing
        model.float()
        if model.model.pooler is not None:
            model.model.pooler.requires_grad_(False)
        if self.training_args.use_cpu:
            # SDPA's backward pass on short texts took 31% of a step on a CPU (torch profiler, two
            # cores with AMX)
            model.model.set_attn_implementation("eager")
        return tokenizer, model


def train(settings: dict[str, Any]) -> None:
    """Train on this worker as `settings` (a `FinetuneConfig` as a dict, and `base`, `state`,
    `device`, `precision`).

    A failure is also left in `FAILURE`, with whether it was memory that ran out.
    """
    state = Path(settings["state"])
    try:
        _train(settings, state)
    except Exception as error:  # the note tells the driver of any failure, which then goes its way
        memory = isinstance(
            error, torch.OutOfMemoryError | MemoryError
        ) or "can't allocate memory" in str(error)
        note = {
            "memory": memory,
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        }
        (state / FAILURE).write_text(json.dumps(note))
        raise


def _train(settings: dict[str, Any], state: Path) -> None:
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    last = last_checkpoint(state)
    runner = Runner(
        EncoderOnlyEmbedderM3ModelArguments(
            model_name_or_path=str(last or settings["base"]), trust_remote_code=False
        ),
        AbsEmbedderDataArguments(
            train_data=[str(state / PAIRS)],
            cache_path=str(state / "cache"),
            train_group_size=settings["group_size"],
            query_max_len=settings["query_length"],
            passage_max_len=settings["passage_length"],
        ),
        _arguments(settings, state),
    )
    watch = _TrainingLog(state, runner.model, runner.tokenizer, settings)
    runner.trainer.add_callback(watch)
    runner.trainer.train(resume_from_checkpoint=None if last is None else str(last))
    spoilt = [
        name for name, value in runner.model.named_parameters() if not torch.isfinite(value).all()
    ]
    if spoilt:
        raise FloatingPointError(
            f"{len(spoilt)} tensors are no longer finite, the first {spoilt[0]}: lower --lr"
        )
    if runner.trainer.is_world_process_zero():
        final = state / f"{FINAL}.tmp"
        shutil.rmtree(final, ignore_errors=True)
        runner.trainer.save_model(str(final))
        final.rename(state / FINAL)


def _arguments(settings: dict[str, Any], state: Path) -> EncoderOnlyEmbedderM3TrainingArguments:
    on_cpu = settings["device"] == "cpu"
    workers = _workers()
    precision = _precision(settings)
    return EncoderOnlyEmbedderM3TrainingArguments(
        output_dir=str(state / CHECKPOINTS),
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["lr"],
        num_train_epochs=settings["epochs"],
        warmup_steps=settings["warmup"],
        use_cpu=on_cpu,
        bf16=precision is Precision.BF16,
        fp16=precision is Precision.FP16,
        seed=settings["seed"],
        save_steps=settings["save_steps"],
        save_total_limit=KEPT_CHECKPOINTS,
        logging_steps=max(1, settings["save_steps"] // 20),
        logging_first_step=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        ddp_find_unused_parameters=False if workers > 1 else None,
        temperature=settings["temperature"],
        normalize_embeddings=True,
        sentence_pooling_method="cls",
        unified_finetuning=True,
        use_self_distill=settings["self_distill"],
        negatives_cross_device=workers > 1,
        sub_batch_size=None,
    )


def _workers() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _precision(settings: dict[str, Any]) -> Precision:
    """AUTO on a GPU: bf16 where the card has it, else fp16 with a scaled loss."""
    wanted = Precision(settings["precision"])
    if wanted is Precision.AUTO:
        return (
            Precision.BF16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else Precision.FP16
        )
    return wanted


def last_checkpoint(state: Path) -> Path | None:
    """The latest checkpoint that was written to its end; None before the first."""
    found = (path.parent for path in (state / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}"))
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class _TrainingLog(TrainerCallback):  # type: ignore[misc]
    """Writes the log: the loss as it goes, and at each checkpoint the recall of pairs aside."""

    def __init__(
        self, state: Path, model: UnifiedModel, tokenizer: Any, settings: dict[str, Any]
    ) -> None:
        self._log = state / LOG
        self._model, self._tokenizer = model, tokenizer
        self._lengths = settings["query_length"], settings["passage_length"]
        aside = [
            json.loads(line)
            for line in (state / ASIDE).read_text(encoding="utf-8").split("\n")
            if line
        ]
        self._queries = [pair["query"] for pair in aside]
        self._answers = [set(pair["pos"]) for pair in aside]
        self._texts = list(
            dict.fromkeys(text for pair in aside for text in [*pair["pos"], *pair["neg"]])
        )
        self._begun = time.monotonic()
        name = cpu_name() if settings["device"] == "cpu" else torch.cuda.get_device_name()
        self._where = {
            "device": name,
            "precision": _precision(settings).value,
            "workers": _workers(),
        }

    def on_train_begin(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        self._write(state, {"steps": state.max_steps, **self._where})
        if state.global_step == 0:
            self._measure(state)

    def on_log(
        self, _arguments: Any, state: Any, *_: Any, logs: dict[str, float], **__: Any
    ) -> None:
        kept: dict[str, Any] = {
            name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs
        }
        if kept:
            self._write(state, kept)

    def on_save(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.is_world_process_zero:
            self._measure(state)
            (Path(arguments.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        self._measure(state)

    def _write(self, state: Any, fields: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            line = {
                "step": state.global_step,
                "seconds": round(time.monotonic() - self._begun, 3),
                **fields,
            }
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def _measure(self, state: Any) -> None:
        """The share of set-aside queries that have an answer among the first `RECALL_AT` texts, by
        dense score; and of those texts that have any sparse weight: pairs that share no token teach
        the model to give none.
        """
        if not state.is_world_process_zero or not self._queries:
            return
        self._model.eval()
        with torch.inference_mode():
            texts, weighted = self._encode(self._texts, self._lengths[1])
            scores = self._encode(self._queries, self._lengths[0])[0] @ texts.T
        self._model.train()
        best = scores.topk(min(RECALL_AT, len(self._texts)), dim=1).indices.tolist()
        found = sum(
            any(self._texts[i] in answers for i in row)
            for row, answers in zip(best, self._answers, strict=True)
        )
        self._write(
            state, {"recall": found / len(self._queries), "sparse": weighted.float().mean().item()}
        )

    def _encode(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense vectors [texts, hidden], and which texts have a sparse weight [texts]."""
        device = next(self._model.parameters()).device
        dense, weighted = [], []
        for start in range(0, len(texts), TEXTS_PER_ENCODING):
            some = self._tokenizer(
                texts[start : start + TEXTS_PER_ENCODING],
                truncation=True,
                max_length=length,
                padding=True,
                return_tensors="pt",
            ).to(device)
            hidden = self._model.model(**some, return_dict=True).last_hidden_state
            dense.append(torch.nn.functional.normalize(hidden[:, 0].float(), dim=-1))
            weighted.append((self._model._sparse_embedding(hidden, some["input_ids"]) > 0).any(1))
        return torch.cat(dense), torch.cat(weighted)
