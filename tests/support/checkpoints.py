"""Checkpoints in BGE-M3's true format with seeded random weights, in any size up to the real one.

A folder that `BGEM3FlagModel` loads as it loads the published model: `config.json`, weights
(safetensors, or `pytorch_model.bin` as published), `sparse_linear.pt`, `colbert_linear.pt`,
`tokenizer.json` and its configuration. Untrained: such a model exercises every part of the plumbing
and knows nothing about meaning.

    python tests/support/checkpoints.py OUT [--size tiny|six|wide|real] [--tokenizer tokenizer.json]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
SAMPLE = Path(__file__).parents[2] / "danbooru_index" / "sample_tags.jsonl"
SHARED = Path(__file__).parents[3] / "shared"

# Texts in three scripts, an emoji, one that is truncated, words that repeat, a character that no
# vocabulary has: what two ways of computing a model must agree on.
MIXED_TEXTS = [
    "猫耳",
    "long_hair",
    "【通用】^_^ - 微笑",
    "セーラー服の女の子",
    "a " * 200,
    "🙂",
    "猫 猫 猫",
    "a\ue000b",
]


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of an XLM-R encoder."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    positions: int = 8194


SHAPES = {
    "tiny": Shape(layers=2, hidden=64, heads=4, intermediate=128),
    "six": Shape(layers=6, hidden=384, heads=12, intermediate=1536),
    # BGE-M3's layers, four of them
    "wide": Shape(layers=4, hidden=1024, heads=16, intermediate=4096),
    "real": Shape(layers=24, hidden=1024, heads=16, intermediate=4096),
}


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int = 2000) -> None:
    """Train a unigram tokenizer with XLM-R's special tokens, ids and template; write
    `tokenizer.json`.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
    from tokenizers.models import Unigram
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(path))


def sample_texts() -> list[str]:
    """The texts of the project's own sample, and some of scripts that it lacks."""
    texts = [json.loads(line)["text"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    return [
        *texts,
        "긴 머리 소녀",
        "девушка с длинными волосами",
        "فتاة ذات شعر طويل",
        "세라복 교복",
        "кошка",
        "قطة",
    ]


def make_checkpoint(
    out: Path,
    shape: Shape = SHAPES["tiny"],
    *,
    seed: int = 0,
    tokenizer: Path | None = None,
    safetensors: bool = True,
    max_length: int = 8192,
) -> Path:
    """Write a checkpoint of `shape` to the folder `out` and return it; the same seed gives the same
    numbers.
    """
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    out.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        train_tokenizer(sample_texts(), out / "tokenizer.json")
    else:
        shutil.copy(tokenizer, out / "tokenizer.json")
    vocab = _vocab_size(out / "tokenizer.json")
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        type_vocab_size=1,
        # large enough that every output depends on every token
        initializer_range=shape.hidden**-0.5,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["XLMRobertaModel"],
    )
    model = XLMRobertaModel(config)
    _unsettle(model)
    model.eval()
    if safetensors:
        model.save_pretrained(out)
    else:
        config.save_pretrained(out)
        torch.save(model.state_dict(), out / "pytorch_model.bin")
    torch.save(torch.nn.Linear(shape.hidden, shape.hidden).state_dict(), out / "colbert_linear.pt")
    torch.save(_sparse_head(shape.hidden).state_dict(), out / "sparse_linear.pt")
    _write_tokenizer_config(out, max_length)
    return out


def _unsettle(model: object) -> None:
    """Biases other than 0 and norms other than 1, as training leaves them: what drops or misplaces
    one is then noticed.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
            if parameter.ndim == 1:
                parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)


def _sparse_head(hidden: int) -> object:
    """A sparse head whose bias is positive: most tokens get a weight, some none, as in the trained
    model.
    """
    import torch

    head = torch.nn.Linear(hidden, 1)
    with torch.no_grad():
        head.bias.fill_(0.3)
    return head


def _vocab_size(path: Path) -> int:
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True))


def _write_tokenizer_config(out: Path, max_length: int) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
    names |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": max_length, **names}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (out / "special_tokens_map.json").write_text(json.dumps(names, indent=1))


def main() -> None:
    """Write one checkpoint from the command line."""
    parser = argparse.ArgumentParser(
        description="Write a checkpoint in BGE-M3's format with seeded random weights."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoint(
        arguments.out, SHAPES[arguments.size], seed=arguments.seed, tokenizer=arguments.tokenizer
    )
    print(f"untrained checkpoint ({arguments.size}, seed {arguments.seed}): {arguments.out}")


if __name__ == "__main__":
    main()
