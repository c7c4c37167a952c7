"""The weights of m3-mini: an XLM-R that begins as the mean of its token vectors, and both heads."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danbooru_index.training.mini_tokenizer import SPECIAL_TOKENS, TokenRows
from danbooru_index.training.mini_vectors import (
    POPULARITY,
    MiniRecipe,
    identity_without_rarity,
    inverse_frequency,
    reserved_axis,
)

log = logging.getLogger(__name__)

RARITY_TEXTS = 5000
RIDGE = 1e-3


def write_base(folder: Path, vectors: torch.Tensor, rows: TokenRows, recipe: MiniRecipe) -> None:
    """An XLM-R whose three outputs are made of the mean of these token vectors, and of each token's
    own; beside it a ColBERT head that passes through, and a sparse head that weighs tokens by their
    rarity in `rows`, the token ids of texts.
    """
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
    colbert, sparse = (
        torch.nn.Linear(recipe.hidden, recipe.hidden),
        torch.nn.Linear(recipe.hidden, 1),
    )
    with torch.no_grad():
        _begin_as_mean(model, vectors, recipe)
        colbert.weight.copy_(identity_without_rarity(recipe.hidden))
        torch.nn.init.zeros_(colbert.bias)
        _weigh_by_rarity(sparse, model, rows, recipe)
    model.save_pretrained(folder)
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")


def refit_sparse(folder: Path, rows: TokenRows, recipe: MiniRecipe) -> None:
    """Fit the sparse head of a tuned model to the rarity of tokens again.

    Most pairs share no token across languages, and on those the training drove every weight to zero
    (measured).
    """
    from transformers import XLMRobertaModel

    sparse = torch.nn.Linear(recipe.hidden, 1)
    with torch.no_grad():
        _weigh_by_rarity(sparse, XLMRobertaModel.from_pretrained(folder).eval(), rows, recipe)
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")


def _begin_as_mean(model: Any, vectors: torch.Tensor, recipe: MiniRecipe) -> None:
    """Uniform attention, values times `gain`, feed-forward layers that begin at zero."""
    wide = math.sqrt(recipe.hidden)  # for weights of unit output
    embeddings = model.embeddings
    embeddings.word_embeddings.weight.copy_(vectors)
    embeddings.word_embeddings.weight[: len(SPECIAL_TOKENS) - 1] = 0  # they say nothing
    embeddings.position_embeddings.weight.zero_()
    embeddings.token_type_embeddings.weight.zero_()
    for layer in model.encoder.layer:
        attention = layer.attention.self
        for part in (attention.query, attention.key):
            part.weight.normal_(0, 0.3 / wide)  # scores near nothing: uniform attention
        attention.value.weight.copy_(recipe.gain * identity_without_rarity(recipe.hidden))
        layer.attention.output.dense.weight.copy_(torch.eye(recipe.hidden))  # passed through
        layer.intermediate.dense.weight.normal_(0, 1 / wide)
        layer.output.dense.weight.normal_(0, 0.02 / math.sqrt(recipe.intermediate))
        for part in (
            attention.query,
            attention.key,
            attention.value,
            layer.attention.output.dense,
            layer.output.dense,
        ):
            part.bias.zero_()
    model.encoder.layer[0].attention.output.dense.bias.copy_(
        recipe.prior * reserved_axis(recipe.hidden, POPULARITY)
    )


def _weigh_by_rarity(
    head: torch.nn.Linear, model: Any, rows: TokenRows, recipe: MiniRecipe
) -> None:
    """Fit the sparse head to inverse document frequencies, by ridge regression over the hidden
    states of some texts.

    Plain least squares has no single solution, since a layer norm's outputs add up to zero: it gave
    coefficients that cancelled out in fp32 and were noise in bf16.
    """
    rarity = recipe.rarity * inverse_frequency(rows, model.config.vocab_size)  # [vocabulary]
    some = np.random.default_rng(recipe.seed).choice(
        len(rows), min(RARITY_TEXTS, len(rows)), replace=False
    )
    states, targets = [], []
    for i in some.tolist():
        row = torch.tensor([rows[i][: recipe.positions - 2]])
        states.append(model(row).last_hidden_state[0, 1:-1])  # [tokens, D]
        targets.append(torch.from_numpy(rarity[row[0, 1:-1].numpy()]))  # [tokens]
    inputs = torch.nn.functional.pad(torch.cat(states), (0, 1), value=1.0).double()
    ridge = RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)  # [D + 1, D + 1]
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ torch.cat(targets)).float()
    head.weight.copy_(solution[:-1].unsqueeze(0))
    head.bias.copy_(solution[-1:])  # the weight of the column of ones


def ship(tuned: Path, out: Path) -> None:
    """A tuned model as the package carries it: float16 weights and the needed files only."""
    from safetensors.torch import load_file, save_file

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    weights = {name: value.half() for name, value in load_file(tuned / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "colbert_linear.pt",
        "sparse_linear.pt",
    ):
        shutil.copyfile(tuned / name, out / name)
    size = sum(path.stat().st_size for path in out.iterdir())
    log.info(f"{out}: {size / 1e6:.1f} MB")
