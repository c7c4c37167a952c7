"""Settings of `prepare` and of what it reads, checked once at the edge."""

from __future__ import annotations

from dataclasses import dataclass

from danbooru_index.errors import UsageError

DEFAULT_SHARD_ROWS = 4096
MOST_SHARD_ROWS = 1 << 20  # of --shard-rows


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many rejected records still count as a clean run: a number or a percentage."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, word: str) -> RejectLimit:
        """Read `20` or `0.5%`; raise `UsageError` otherwise."""
        text = word.strip()
        try:
            limit = cls(percent=float(text[:-1])) if text.endswith("%") else cls(count=int(text))
        except ValueError:
            raise UsageError(
                f"--max-rejects takes a number or a percentage (20 or 0.5%), not {word!r}"
            ) from None
        if (limit.count or 0) < 0 or not 0 <= (limit.percent or 0) <= 100:
            raise UsageError(f"--max-rejects {word!r} is out of range")
        return limit

    def allows(self, rejected: int, read: int) -> bool:
        """Whether `rejected` of `read` records is within the limit."""
        if self.percent is not None:
            return rejected <= read * self.percent / 100
        return rejected <= (self.count or 0)


@dataclass(frozen=True, slots=True)
class DumpConfig:
    """What a user says about dumps that they do not say themselves.

    `map`: `field=column` pairs, or a YAML file of them. `site`: whose category numbers they have.
    `nsfw_tags`: files that list tags which are not safe for work; `nsfw_words`: whether tags of a
    dump without ratings are marked by their words. `accept_unlikely`: go on where what was
    understood looks wrong.
    """

    map: tuple[str, ...] = ()
    site: str | None = None
    encoding: str | None = None
    table: str | None = None
    nsfw_tags: tuple[str, ...] = ()
    nsfw_words: bool = True
    accept_unlikely: bool = False


@dataclass(frozen=True, slots=True)
class PrepareConfig:
    """What `prepare` is asked to do. `dry_run`: read everything, write nothing."""

    inputs: tuple[str, ...]
    out: str
    shard_rows: int = DEFAULT_SHARD_ROWS
    translations: str | tuple[str, ...] | None = None
    strict: bool = False
    max_rejects: RejectLimit = RejectLimit(count=0)
    dump: DumpConfig = DumpConfig()
    dry_run: bool = False

    @property
    def translation_files(self) -> tuple[str, ...]:
        """The files of translations, in the order in which they count."""
        named = self.translations or ()
        return (named,) if isinstance(named, str) else tuple(named)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError(
                "prepare needs at least one INPUT: a .jsonl, .csv or .parquet file, or a folder of"
                " them"
            )
        if not 1 <= self.shard_rows <= MOST_SHARD_ROWS:
            raise UsageError(f"--shard-rows must be between 1 and 1048576, not {self.shard_rows}")
