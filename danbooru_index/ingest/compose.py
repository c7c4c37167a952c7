"""The text of a record whose dump brings none: `【category】tag - explanation`.

The explanation is what people may ask by: translations, else names in other scripts; what the tag
means; English aliases that are no respelling. `evaluate` chose so: see the notebook.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

LONGEST_EXPLANATION = 200  # characters
LONGEST_DESCRIPTION = 120
RESPELLED = 0.75  # similarity from which on an alias is the tag in another spelling
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|(?<=[。！？])|\n")
_MARKUP = re.compile(r"\[/?\w+\]|h[1-6](#\S+)?\.\s|\"([^\"]+)\":\S+|\[\[([^\]|]+)(\|[^\]]*)?\]\]")


def compose_text(category: str, tag: str, explanation: str) -> str:
    """The text of a record. A category that is not known leaves no empty brackets."""
    head = f"【{category}】{tag}" if category else tag
    return f"{head} - {explanation}" if explanation else head


def compose_explanation(
    tag: str, translations: Sequence[str], aliases: Sequence[str], description: str
) -> str:
    """What a tag's translations (without any, its names in other scripts), description and English
    aliases say, each once, up to a bounded length; the first stands, however long.

    Measured on 137,317 tags: names beside a translation cost other Japanese names .04 Recall@10.
    """
    others = [] if any(translations) else [alias for alias in aliases if not _latin(alias)]
    english = [alias.replace("_", " ") for alias in aliases if _latin(alias)]
    parts = [*translations, *others]
    if description:
        parts.append(first_sentence(description))
    said: list[str] = []
    length = 0
    for part in _once(parts, []):
        if said and length + len(part) > LONGEST_EXPLANATION:
            break
        said.append(part)
        length += len(part) + 2
    for alias in english:
        if length + len(alias) > LONGEST_EXPLANATION:
            break
        if not any(_respelled(alias, name) for name in (tag, *said)):
            said.append(alias)
            length += len(alias) + 2
    return ", ".join(said)


def first_sentence(text: str) -> str:
    """The first sentence of a description, without wiki markup, up to a bounded length."""
    plain = _MARKUP.sub(lambda match: match[2] or match[3] or "", text.strip())
    sentence = " ".join(_SENTENCE_END.split(plain.strip(), maxsplit=1)[0].split())
    if len(sentence) <= LONGEST_DESCRIPTION:
        return sentence
    cut = sentence.rfind(" ", 0, LONGEST_DESCRIPTION)
    return sentence[: cut if cut > LONGEST_DESCRIPTION // 2 else LONGEST_DESCRIPTION]


def _once(parts: Iterable[str], said: list[str]) -> Iterable[str]:
    """The parts that none before them holds already."""
    for part in parts:
        word = part.strip()
        if word and not any(word.casefold() in other.casefold() for other in said):
            said.append(word)
            yield word


def _latin(name: str) -> bool:
    """Whether a name has no letter of another script than Latin."""
    return all(character < "\u0250" or not character.isalpha() for character in name)


def _respelled(alias: str, name: str) -> bool:
    """Whether two names are spellings of one: `1girls` of `1girl`, `longhair` of `long_hair`."""
    one, other = (re.sub(r"[^a-z0-9]+", "", word.casefold()) for word in (alias, name))
    if not one or one in other:
        return True
    # An upper bound of the similarity that costs less than the similarity.
    match = SequenceMatcher(None, one, other, autojunk=False)
    return match.real_quick_ratio() >= RESPELLED and match.ratio() >= RESPELLED
