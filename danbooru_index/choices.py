"""What can be chosen from: devices, precisions, sites, search modes; what a device is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Self

from danbooru_index.errors import UsageError


class Choice(str, Enum):
    """An enum that is parsed from the word a user typed."""

    @classmethod
    def parse(cls, word: str) -> Self:
        """Return the member spelled `word`; raise `UsageError` that lists the known ones."""
        try:
            return cls(word.strip().lower())
        except ValueError:
            known = ", ".join(member.value for member in cls)
            raise UsageError(
                f"unknown {cls.__name__.lower()} {word!r}: choose one of {known}"
            ) from None


class Device(Choice):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class IfRunning(Choice):
    """What a rebuild does while another one is at work on its index."""

    FAIL = "fail"
    SKIP = "skip"


class Precision(Choice):
    """What the model computes in. AUTO: fp16 on a GPU, bf16 on a CPU that has it, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as a worker sees it; memory in bytes (0 on a CPU)."""

    kind: str
    name: str
    precision: str
    memory: int = 0
    free_memory: int = 0


class Mode(Choice):
    """How a query is answered."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    HYBRID = "hybrid"
    LEXICAL = "lexical"


class MatchReason(Choice):
    """Why a tag answers a query: by a name that it has, or by what it means."""

    EXACT = "exact"
    ALIAS = "alias"
    OTHER_NAME = "other name"
    ABBREVIATION = "abbreviation"
    PREFIX = "prefix"
    SPELLING = "spelling"
    TRANSLITERATION = "transliteration"
    MEANING = "meaning"


class Site(Choice):
    """Whose category numbers a dump has."""

    DANBOORU = "danbooru"
    E621 = "e621"
    GELBOORU = "gelbooru"
    DERPIBOORU = "derpibooru"
    MERGED = "danbooru+e621"  # lists for autocompletion that hold both, e621's numbers plus 7
