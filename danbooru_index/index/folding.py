"""Names and queries in one spelling: what is the same name to whoever types it is the same key.

Case, width, kana, accents and separators are folded; letters are never changed otherwise.
"""

from __future__ import annotations

import re
import unicodedata

GAPS = re.compile(r"[\s_]+")
MARKED_LATIN = re.compile(r"[\u00c0-\u024f\u1e00-\u1eff]")  # letters with accents
KANA = re.compile(r"[\u3041-\u3096\u309d\u309e\u30a1-\u30fa\u30fc-\u30fe\uff66-\uff9f]")
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA_OR_HAN = re.compile(f"{KANA.pattern}|{HAN.pattern}")
BETWEEN_CJK = re.compile(r"[_\u30fb\u00b7\u2022]+")  # spaces and middle dots
PARENTHESES = re.compile(r"_?\([^()]*\)$")

# Katakana that have a hiragana, and signs that keyboards and fonts exchange.
_SAME = {code: code - 0x60 for code in (*range(0x30A1, 0x30F7), 0x30FD, 0x30FE)} | {
    ord(given): meant for given, meant in zip("‘’“”〜‐‑–—", "''\"\"~----", strict=True)
}


def fold(name: str) -> str:
    """The key of a name: NFKC, lower case, hiragana, no accents; a run of spaces and underscores is
    one underscore, and nothing where the name is Chinese or Japanese.

    >>> fold("Long  Hair"), fold("セーラー服"), fold("ﾈｺ ミミ"), fold("^_^")
    ('long_hair', 'せーらー服', 'ねこみみ', '^_^')
    """
    if name.isascii():
        return GAPS.sub("_", name.strip()).lower()
    key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    key = GAPS.sub("_", key.strip()).translate(_SAME)
    key = MARKED_LATIN.sub(lambda found: unicodedata.normalize("NFD", found[0])[0], key)
    return BETWEEN_CJK.sub("", key) if KANA_OR_HAN.search(key) else key


def without_parentheses(key: str) -> str:
    """A key without the parentheses at its end: `akagi` of `akagi_(kancolle)`; else as it was."""
    return PARENTHESES.sub("", key) or key


def unescaped(query: str) -> str:
    r"""A query whose parentheses were escaped for an image generator: `akagi \\(kancolle\\)`."""
    return query.replace("\\(", "(").replace("\\)", ")")


def is_cjk(key: str) -> bool:
    """Whether a key has kana or Han characters."""
    return bool(KANA_OR_HAN.search(key))


def has_kana(key: str) -> bool:
    """Whether a key is Japanese beyond doubt."""
    return bool(KANA.search(key))


def is_chinese(key: str) -> bool:
    """Whether a key may be Chinese: it has Han characters and no kana."""
    return bool(HAN.search(key)) and not KANA.search(key)
