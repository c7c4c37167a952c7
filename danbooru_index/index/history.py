"""The runs that made an index: one small file a run, INDEX/history/<when>.json."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from danbooru_index.index.catalog import IndexRoot
from danbooru_index.storage.base import from_checked_json, to_checked_json
from danbooru_index.storage.read_ahead import read_ahead

RUNS_KEPT = 1000  # runs; older ones are forgotten


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one `rebuild` did. `at`: its end, in seconds since the epoch; `outcome`: published,
    unchanged, failed or skipped; `message`: why it failed or was skipped. `added`, `removed`,
    `retexted`: tags against the generation published `before`; `encoded`: texts; `reused`: records
    that took their vectors from it; `dump_at`: when the dump was last changed; `ratio`: to the
    baseline of 96.3 tags/s; `guards`: what was checked.
    """

    index: str
    outcome: str
    exit_code: int = 0
    message: str = ""
    at: float = 0.0
    generation: str = ""
    before: str = ""
    records: int = 0
    added: int = 0
    removed: int = 0
    retexted: int = 0
    encoded: int = 0
    reused: int = 0
    rejected: int = 0
    seconds: float = 0.0
    tags_per_second: float = 0.0
    ratio: float = 0.0
    dump_at: float = 0.0
    guards: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """What `to_dict` gave; fields of a later version are passed over."""
        return cls(**{name: fields[name] for name in cls.__slots__ if name in fields})

    def to_text(self) -> str:
        """One line, for a log or an alert."""
        if self.outcome in ("failed", "skipped"):
            return f"rebuild {self.outcome}: {self.message}"
        changes = f"+{self.added:,} -{self.removed:,} tags, {self.retexted:,} with another text"
        speed = f", {self.tags_per_second:,.1f} tags/s, {self.ratio:.2f}x baseline"
        reused = f", {self.reused:,} reused" if self.reused else ""
        left_out = f", {self.rejected:,} left out" if self.rejected else ""
        return (
            f"rebuild {self.outcome} {self.generation}: {self.records:,} records"
            f" ({changes if self.before else 'the first'}){left_out}, {self.encoded:,} encoded"
            f"{reused}, {self.seconds:,.1f} s{speed if self.encoded and not self.reused else ''}"
        )

    def to_line(self) -> str:
        """`to_text`, with its time."""
        return f"  {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.at))}  {self.to_text()}"


def remember(root: IndexRoot, run: RunRecord) -> None:
    """Add a run to the history of an index; any process may."""
    folder = root.path / "history"
    folder.make_folder()
    second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(run.at))
    name = f"{second}-{int(run.at * 1e6) % 1_000_000:06d}-{uuid.uuid4().hex[:8]}.json"
    (folder / name).replace(to_checked_json(run.to_dict()))
    for old in _files(root)[:-RUNS_KEPT]:
        (folder / old).delete()


def history(root: IndexRoot) -> list[RunRecord]:
    """The runs of an index, oldest first; what cannot be read is passed over."""
    folder = root.path / "history"

    def read(name: str) -> RunRecord | None:
        try:
            return RunRecord.from_dict(from_checked_json((folder / name).read()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    local = root.path.local_path() is not None
    found = read_ahead(read, _files(root), local=local)
    return [run for run in found if run is not None]


def _files(root: IndexRoot) -> list[str]:
    names = (path.name for path in (root.path / "history").entries())
    return sorted(name for name in names if name.endswith(".json") and not name.startswith("."))
