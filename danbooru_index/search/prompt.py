"""A pasted prompt as the names that it lists: separators, weights and escapes of the image
generators taken off.

`(long hair:1.2)`, `((x))`, `[x]`, `{x}` (Stable Diffusion web UI, NovelAI), `1.2::x::` (NovelAI 4),
`akagi \\(kancolle\\)`, `<lora:x:0.8>`, `BREAK`. A tag's own parentheses stay where they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SEPARATOR = re.compile(r"[,，、\n]|\bBREAK\b|<[^<>]*:[^<>]*>")
FACTOR = r"[-+]?(?:\d+\.?\d*|\.\d+)"
WEIGHT_BEFORE = re.compile(rf"^\s*{FACTOR}::\s*")
WEIGHT_BEHIND = re.compile(rf":\s*{FACTOR}\s*(?=[)\]}}]*\s*$)")
ROLE = re.compile(r"^\s*(?:artist|character|copyright|by)\s*:\s*", re.IGNORECASE)
BRACKETS = {"(": ")", "[": "]", "{": "}"}
ESCAPED = {"\\(": "\ue000", "\\)": "\ue001", "\\[": "\ue002", "\\]": "\ue003"}


@dataclass(frozen=True, slots=True)
class PromptPart:
    """One name of a prompt: as it is written, and without what only a generator reads."""

    written: str
    name: str


def split_prompt(prompt: str) -> list[PromptPart]:
    r"""The parts of a prompt in their order, each once.

    >>> [part.name for part in split_prompt(r"(long hair:1.2), 1girl, akagi \(kancolle\), {x}")]
    ['long hair', '1girl', 'akagi (kancolle)', 'x']
    """
    parts: dict[str, PromptPart] = {}
    for piece in SEPARATOR.split(prompt):
        written, name = piece.strip(), plain_name(piece)
        if name:
            parts.setdefault(name, PromptPart(written, name))
    return list(parts.values())


def plain_name(piece: str) -> str:
    """A part of a prompt without weights, groups and escapes."""
    for escaped, mark in ESCAPED.items():
        piece = piece.replace(escaped, mark)
    before = None
    while before != piece:
        before = piece
        piece = WEIGHT_BEHIND.sub("", WEIGHT_BEFORE.sub("", piece)).strip()
        piece = _ungrouped(piece.removesuffix("::").strip())
    piece = ROLE.sub("", piece)
    for escaped, mark in ESCAPED.items():
        piece = piece.replace(mark, escaped[1])
    return " ".join(piece.split())


def _ungrouped(piece: str) -> str:
    """Without a bracket around the whole, or one whose partner is in another part."""
    if not piece:
        return piece
    partner = _partner(piece)
    if piece[0] in BRACKETS and (partner == len(piece) - 1 or partner < 0):
        return piece[1:-1] if partner > 0 else piece[1:]
    if piece[-1] in BRACKETS.values() and piece.count(piece[-1]) > piece.count(_opener(piece[-1])):
        return piece[:-1]
    return piece


def _partner(piece: str) -> int:
    """Where the bracket at the start of a piece closes; -1 where it does not."""
    depth = 0
    for place, character in enumerate(piece):
        depth += (character == piece[0]) - (character == BRACKETS.get(piece[0]))
        if not depth:
            return place
    return -1


def _opener(closer: str) -> str:
    return next(opener for opener, other in BRACKETS.items() if other == closer)
