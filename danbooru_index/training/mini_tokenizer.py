"""The tokenizer of m3-mini: unigram, no word boundaries, a token for each category."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danbooru_index.records import Record

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
LONGEST_PIECE = 6  # characters: names that were never seen fall into pieces that were
TokenRows = list[list[int]]


def train_tokenizer(
    records: Sequence[Record], queries: Sequence[str], folder: Path, vocabulary: int
) -> None:
    """A unigram tokenizer with a token a category, split where the script changes."""
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
    tokenizer.train_from_iterator(
        [record.text.partition("】")[2] for record in records] + list(queries), trainer
    )
    categories = sorted({record.category for record in records} - {""})
    tokenizer.add_tokens(
        [AddedToken(category_token(name), normalized=False) for name in categories]
    )
    tokenizer.add_special_tokens(["<mask>"])
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    named = {**SPECIAL_TOKENS, "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def category_token(category: str) -> str:
    """The token of a category."""
    return f"【{category}】"


def token_rows(folder: Path, texts: list[str]) -> TokenRows:
    """The token ids of each text, `<s>` and `</s>` around them."""
    return [encoding.ids for encoding in load_mini_tokenizer(folder).encode_batch(texts)]


def load_mini_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))
