"""A sentence as its words: Chinese by jieba, Japanese by fugashi, the rest by spaces.

Words that only join others (`的`, `穿着`, `の`, `with`) are told apart: they name nothing.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from danbooru_index.index.folding import has_kana, is_cjk

# What stands between the names of a description, and is none.
CHINESE_JOINING = frozenset(
    """的 地 得 了 着 过 在 是 有 和 与 及 跟 或 并 也 都 正 正在 被 把 给 对 从 向 往 到 以 用 为
    里 中 上 下 内 外 边 旁 之 之中 之下 之上 下面 上面 里面 很 非常 一边 画 画面
    一 一个 一位 一名 一只 一件 一条 一张 一双 一些 个 位 名 只 件 条 张 双
    这 那 这个 那个 她 他 它 她们 他们 我
    穿 穿着 穿上 身穿 身着 戴 戴着 戴上 拿 拿着 带 带着 留 留着 拥有 具有""".split()  # noqa: SIM905
)
LATIN_JOINING = frozenset(
    """a an the with in on of and or at is are was to for from by her his their she he it they
    wearing wears wear who that which has have having while under behind""".split()  # noqa: SIM905
)
JAPANESE_JOINING = frozenset(("助詞", "助動詞", "補助記号", "記号", "空白", "接続詞", "代名詞"))
JAPANESE_VERBS = frozenset(("為る", "居る", "有る", "着る", "持つ", "付ける", "掛ける"))
_cutting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a sentence, as written; `joins`: it only joins others."""

    text: str
    joins: bool


def words_of(sentence: str) -> list[Word]:
    """The words of a sentence, in order."""
    if not is_cjk(sentence):
        return [Word(word, word.casefold() in LATIN_JOINING) for word in sentence.split()]
    if has_kana(sentence):
        return list(_japanese(sentence))
    return list(_chinese(sentence))


def _chinese(sentence: str) -> Iterator[Word]:
    for word in _jieba().cut(sentence, HMM=False):
        if word.strip():
            yield Word(word, word in CHINESE_JOINING or not word.isalnum())


def _japanese(sentence: str) -> Iterator[Word]:
    with _cutting:  # a tagger is one thread's
        words = list(_tagger()(sentence))
        kinds = [(w.surface, w.feature.pos1, w.feature.lemma) for w in words]
    for text, kind, lemma in kinds:
        if text.strip():
            yield Word(text, kind in JAPANESE_JOINING or lemma in JAPANESE_VERBS)


@cache
def _jieba() -> Any:
    """Its dictionary read anew: its cache would be a file that anyone may write, in /tmp."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python 3.12 says of its patterns
        import jieba

    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


@cache
def _tagger() -> Any:
    import fugashi

    return fugashi.Tagger()
