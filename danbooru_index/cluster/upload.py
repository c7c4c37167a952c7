"""What Ray would upload of a folder, its size, and what makes it large.

The rules are Ray's: no `.git`, `.venv`, `venv`, `__pycache__`, and what the `.gitignore` and
`.rayignore` of each folder leave out. Ray itself says of a folder that is too large only how large
it is, after it has packed it.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danbooru_index.errors import ClusterError, StorageError, first_line

LEFT_OUT = (".git", ".venv", "venv", "__pycache__")
IGNORE_FILES = (".gitignore", ".rayignore")
LARGEST_SUBMISSION = 100 << 20  # of the job server, packed
LARGEST_PACKAGE = 512 << 20  # of a driver that joins, packed
MOST_FILES = 200_000
LARGEST_NAMED = 3


@dataclass(slots=True)
class Upload:
    """Bytes and files, by the first part of their path."""

    sizes: Counter[str] = field(default_factory=Counter)
    files: int = 0

    @property
    def bytes(self) -> int:
        return self.sizes.total()

    def largest(self) -> str:
        """The entries that take most, with their sizes."""
        return ", ".join(
            f"{name} {size / 1e6:,.0f} MB" for name, size in self.sizes.most_common(LARGEST_NAMED)
        )


def measure_upload(folder: Path) -> Upload:
    """What Ray would upload of a folder. Raises `StorageError` above `MOST_FILES` files."""
    upload = Upload()
    _walk(folder.absolute(), folder.absolute(), [], upload, set())
    return upload


def refuse_large_upload(folder: Path) -> None:
    """Raise `ClusterError` if joining would upload this folder (`uv run`) and it is large."""
    if not under_uv_run():
        return
    found = measure_upload(folder)
    if found.bytes > LARGEST_PACKAGE:
        raise ClusterError(
            f"{folder}: under uv run Ray uploads this folder to the cluster,"
            f" {found.bytes / 1e6:,.0f} MB of at most {LARGEST_PACKAGE / 1e6:,.0f}"
            f" ({found.largest()}): name them in .rayignore, keep data elsewhere, or set"
            " RAY_ENABLE_UV_RUN_RUNTIME_ENV=0"
        )


def under_uv_run() -> bool:
    """Whether Ray would take this process for one of `uv run`'s, and is not told to leave that."""
    import psutil

    if os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1").lower() not in ("1", "true"):
        return False
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        if len(words) > 1 and Path(words[0]).name == "uv" and words[1] == "run":
            return True
    return False


def _walk(
    root: Path,
    folder: Path,
    specs: list[tuple[Path, Any]],
    upload: Upload,
    seen: set[tuple[int, int]],
) -> None:
    """Count what is in a folder, less what the ignore files above it and its own leave out; a
    folder that links lead to again once. What cannot be read counts nothing: Ray will fail there,
    and say so.
    """
    from pathspec import PathSpec

    for name in IGNORE_FILES:
        path = folder / name
        if path.is_file() and not (
            name == ".gitignore" and os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1"
        ):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            try:
                specs = [*specs, (folder, PathSpec.from_lines("gitignore", lines))]
            except ValueError as error:
                raise StorageError(
                    f"{path}: a line that is no pattern ({first_line(error)})"
                ) from None
    try:
        known = (folder.stat().st_dev, folder.stat().st_ino)
        entries = [] if known in seen else sorted(os.scandir(folder), key=lambda entry: entry.name)
        seen.add(known)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name in LEFT_OUT or any(
            spec.match_file(str(path.relative_to(place))) for place, spec in specs
        ):
            continue
        try:
            if entry.is_dir():
                _walk(root, path, specs, upload, seen)
                continue
            size = entry.stat().st_size if entry.is_file() else 0
        except OSError:
            continue
        upload.files += 1
        if upload.files > MOST_FILES:
            raise StorageError(
                f"{root}: more than {MOST_FILES:,} files to upload ({upload.largest()}): submit a"
                " smaller folder"
            )
        upload.sizes[path.relative_to(root).parts[0]] += size
