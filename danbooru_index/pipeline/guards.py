"""What a rebuild checks before a new generation takes the place of the published one.

A guard that fails keeps the published generation. What was built stays, sealed: the same command
with `--publish-anyway` publishes it without encoding anything (but where shards failed, which are
tried again).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from danbooru_index.choices import Device
from danbooru_index.errors import BuildFailedError, DanbooruIndexError, StorageError, UsageError
from danbooru_index.evaluation.canaries import average_precisions, check_queries, quality_change
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.likeness import compared_vectors, explained_share
from danbooru_index.index.old_vectors import old_vectors, rotten_files
from danbooru_index.ingest.prepare_report import PrepareReport
from danbooru_index.prepare_config import RejectLimit

SAME = 0.999  # cosine: what DESIGN section 8 asks of a model in another precision


class GuardError(BuildFailedError):
    """Guards did not let a generation be published; `guards`: what each of all found."""

    def __init__(self, message: str, guards: list[GuardResult]) -> None:
        super().__init__(message)
        self.guards = [one.to_dict() for one in guards]


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What a guard lets pass. `max_shrink`, `max_explanation_loss`: shares; `queries`: a file of
    known queries, None: none are asked; `max_quality_loss`: of mAP@10; `max_rejects`: None where
    rejects only decide the exit code. `publish_anyway`: nothing is guarded.
    """

    max_shrink: float = 0.05
    max_explanation_loss: float = 0.10
    queries: str | None = None
    max_quality_loss: float = 0.02
    max_rejects: RejectLimit | None = None
    publish_anyway: bool = False

    def __post_init__(self) -> None:
        for name in ("max_shrink", "max_explanation_loss", "max_quality_loss"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} must be between 0 and 100%, or 0 and 1, not {value}")


def parse_share(word: str, option: str) -> float:
    """Read `5%` or `.05`; raise `UsageError` for anything else.

    >>> parse_share("5%", "--max-shrink"), parse_share(".02", "--max-quality-loss")
    (0.05, 0.02)
    """
    text = word.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option} takes a share, such as 5% or .05; not {word!r}")
    return value


@dataclass(frozen=True, slots=True)
class GuardResult:
    """What one guard found: `passed` None where it could not compare; `details` for a report."""

    name: str
    passed: bool | None
    message: str
    details: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value != {}}


class Guards:
    """Compares a sealed generation with the published one; what each guard found is `results`."""

    def __init__(
        self,
        root: IndexRoot,
        limits: GuardLimits,
        prepared: PrepareReport,
        model: str | None = None,
        device: Device = Device.AUTO,
    ) -> None:
        self._root, self._limits, self._prepared = root, limits, prepared
        self._model, self._device = model, device
        self.results: list[GuardResult] = []
        self.notes: list[str] = []

    def __call__(self, generation: Generation) -> None:
        """Raise `GuardError` where a guard does not let this generation be published."""
        last = self._last(generation)
        if last is None:
            return
        if self._limits.publish_anyway:
            self.notes.append("published without its guards (--publish-anyway)")
            return
        self.results = [
            self._records(last, generation),
            self._explanations(last, generation),
            self._rejects(),
            self._vectors(last, generation),
            self._quality(last, generation),
        ]
        failed = [one for one in self.results if one.passed is False]
        if failed:
            said = "; ".join(f"guard {one.name}: {one.message}" for one in failed)
            raise GuardError(
                f"{generation.id} is not published, {last.id} stays: {said}; what was built is"
                " kept: the same command with --publish-anyway publishes it",
                self.results,
            )

    def _last(self, generation: Generation) -> Generation | None:
        """What is published; None where nothing is, or it cannot be read."""
        try:
            last = self._root.current() if self._root.current_id() else None
        except StorageError as error:
            self.notes.append(f"compared with no generation: {error}")
            return None
        return None if last is None or last.id == generation.id else last

    def _records(self, last: Generation, new: Generation) -> GuardResult:
        before, after = (one.manifest.need_seal().records for one in (last, new))
        change = (after - before) / before if before else 0.0
        limit = self._limits.max_shrink
        said = f"{after:,} records, {change:+.1%} against {before:,}"
        return GuardResult("records", -change <= limit, f"{said} (--max-shrink {100 * limit:g}%)")

    def _explanations(self, last: Generation, new: Generation) -> GuardResult:
        limit = self._limits.max_explanation_loss
        try:
            before, after = explained_share(last), explained_share(new)
        except StorageError as error:
            return GuardResult("explanations", None, f"not compared: {error}")
        return GuardResult(
            "explanations",
            before - after <= limit,
            f"{after:.1%} of the texts explain their tag, {before:.1%} before"
            f" (--max-explanation-loss {100 * limit:g}%)",
        )

    def _rejects(self) -> GuardResult:
        rejected, read = sum(self._prepared.rejected.values()), self._prepared.read
        said = f"{rejected:,} of {read:,} records of the dump left out"
        limit = self._limits.max_rejects
        if limit is None:
            return GuardResult("rejects", None, f"{said}, without a limit (--max-rejects)")
        return GuardResult("rejects", limit.allows(rejected, read), f"{said} (--max-rejects)")

    def _vectors(self, last: Generation, new: Generation) -> GuardResult:
        """Unchanged texts must have the vectors that they had."""
        if last.manifest.fingerprint_digest != new.manifest.fingerprint_digest:
            return GuardResult("vectors", None, "not compared: the model or its settings changed")
        try:
            compared, lowest = compared_vectors(last, new)
            if not lowest >= SAME and (rotten := rotten_files(old_vectors(last))):
                # what differs may be the rot
                return GuardResult(
                    "vectors", None, f"not compared: {last.id} is damaged ({rotten[0]})"
                )
        except StorageError as error:
            return GuardResult("vectors", None, f"not compared: {error}")
        said = f"{compared:,} unchanged texts, lowest cosine to their last vectors {lowest:.5f}"
        return GuardResult("vectors", lowest >= SAME, f"{said} (at least {SAME:g})")

    def _quality(self, last: Generation, new: Generation) -> GuardResult:
        if self._limits.queries is None:
            return GuardResult("quality", None, "no known queries were asked (--queries FILE)")
        asked = check_queries(self._limits.queries)
        alike = last.manifest.model.id == new.manifest.model.id
        try:
            before = average_precisions(last, asked, self._model if alike else None, self._device)
        except DanbooruIndexError as error:
            return GuardResult("quality", None, f"not compared: {last.id}: {error}")
        try:
            after = average_precisions(new, asked, self._model, self._device)
        except DanbooruIndexError as error:
            return GuardResult("quality", False, f"cannot be measured: {error}")
        found = quality_change(asked, before, after)
        mean, low, high = found.change
        limit = self._limits.max_quality_loss
        said = (
            f"mAP@10 {found.new:.3f}, {mean:+.3f} [{low:+.3f}, {high:+.3f}] against {found.old:.3f}"
        )
        return GuardResult(
            "quality", -mean <= limit, f"{said} (--max-quality-loss {limit:.3g})", asdict(found)
        )
