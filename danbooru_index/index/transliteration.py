"""Chinese and Japanese names in Latin letters, and traditional Chinese in simplified.

Libraries are loaded at the first name that needs them: OpenCC, pypinyin, cutlet with unidic-lite.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from typing import Any

from danbooru_index.index.folding import HAN, is_chinese, is_cjk

QUESTION, UNREAD = re.compile("[?？]"), "?"  # what cutlet writes for a character it cannot read
NOT_LETTERS = re.compile(r"[^a-z0-9]+")
# Long vowels and doubled consonants, which people write in several ways: toukyou, tokyo.
_reading = threading.Lock()
LONG = [(re.compile(pattern), short) for pattern, short in (("ou", "o"), (r"(.)\1+", r"\1"))]


def simplified(key: str) -> str:
    """A folded key in simplified Chinese; one that holds kana is Japanese, and stays."""
    return str(_opencc().convert(key)) if is_chinese(key) else key


def pinyin(key: str) -> list[str]:
    """The syllables of a Chinese key; whatever is no Han character comes as it is.

    >>> pinyin("猫耳")
    ['mao', 'er']
    """
    return _pinyin()(key, errors=lambda other: [other]) if HAN.search(key) else []


def romaji(key: str) -> str:
    """A Japanese name in Latin letters, its readings by dictionary: `seeraafuku` of セーラー服.

    Empty where a character has no Japanese reading: 黑丝 is Chinese, and what can be read of it
    would be another word.
    """
    if not is_cjk(key):
        return ""
    with _reading:  # MeCab writes into its tagger as it reads
        letters = str(_cutlet().romaji(QUESTION.sub("", key), capitalize=False)).lower()
    return "" if UNREAD in letters else NOT_LETTERS.sub("", letters)


def squeezed(letters: str) -> str:
    """Latin letters with every vowel short and every consonant single.

    >>> squeezed("toukyou"), squeezed("seeraafuku")
    ('tokyo', 'serafuku')
    """
    for pattern, short in LONG:
        letters = pattern.sub(short, letters)
    return letters


def latin(name: str) -> str:
    """The letters and digits of a folded Latin name, squeezed; empty where it has kana or Han."""
    return "" if is_cjk(name) else squeezed(NOT_LETTERS.sub("", name))


@cache
def _opencc() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


@cache
def _pinyin() -> Any:
    from pypinyin import lazy_pinyin, load_phrases_dict

    load_phrases_dict({"马尾": [["mǎ"], ["wěi"]]})  # a ponytail, not a weed
    return lazy_pinyin


@cache
def _cutlet() -> Any:
    import cutlet

    katsu = cutlet.Cutlet()
    katsu.use_foreign_spelling = False  # `sera` for セーラ, never `sailor`
    return katsu
