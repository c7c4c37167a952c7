"""Is what came of a dump likely to be what its owner meant? Counted while the records stream by."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from danbooru_index.ingest.delimited import CJK
from danbooru_index.records import Record

MOST_TAGS = 0.5
FEW = 20  # records, below which nothing is said about their categories
LONG_NAME = 6  # words, from which on a tag is a sentence
MOST_CATEGORIES = 10_000
TWO_IN_ONE = re.compile(r"\s*\d+\s+\S.*|.*\S[\s=:]+\d+\s*|.*\S(\s=\s|:\s)\S.*")
DELIMITED = re.compile(r"[^\s;|]+[;|\t][^;|\t]*[;|\t]")


@dataclass(slots=True)
class Plausibility:
    """What the records whose text was made look like, taken together."""

    records: int = 0
    foreign: int = 0
    sentences: int = 0
    delimited: int = 0
    numbers: int = 0
    doubles: int = 0
    counted: int = 0
    zeros: int = 0
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count one record."""
        tag = record.tag
        self.records += 1
        self.foreign += CJK.search(tag) is not None
        self.sentences += len(tag.split()) > LONG_NAME
        self.delimited += DELIMITED.search(tag) is not None
        self.numbers += tag.isdigit()
        self.doubles += TWO_IN_ONE.fullmatch(tag) is not None
        self.counted += record.post_count is not None
        self.zeros += record.post_count == 0
        if len(self.categories) < MOST_CATEGORIES:
            self.categories[record.category] += 1

    def problem(self) -> str:
        """What is unlikely about them, in words; empty: nothing."""
        if not self.records:
            return ""
        unlikely = {
            "hold Chinese, Japanese or Korean": self.foreign,
            "are sentences": self.sentences,
            "hold delimiters": self.delimited,
            "are numbers": self.numbers,
            "hold a number or a text beside the name": self.doubles,
        }
        for words, count in unlikely.items():
            if count > MOST_TAGS * self.records:
                return f"{count:,} of {self.records:,} tags {words}"
        if self.records >= FEW and len(self.categories) > MOST_TAGS * self.records:
            return f"{self.records:,} records have {len(self.categories):,} different categories"
        if self.counted > 1 and self.zeros == self.counted:
            return f"all {self.counted:,} numbers of posts are 0"
        return ""
