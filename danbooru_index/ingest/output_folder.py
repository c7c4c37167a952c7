"""The folder that `prepare` writes: replaced as a whole, never one that holds other things."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from danbooru_index.errors import UsageError
from danbooru_index.ingest.sources import OWN_FILES

REJECTS_FILE, REPORT_FILE = OWN_FILES
SHARD_FILE = re.compile(r"tags-[0-9]{6,}-[0-9a-f]{16}\.parquet")
STAGING, REPLACED = "partial", "old"


def check_replaceable(out: Path, inputs: tuple[str, ...]) -> None:
    """Refuse an output folder that holds an input, or what `prepare` did not write."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; a folder is needed")
    if os.path.ismount(out):
        raise UsageError(
            f"--out {out}: a disk's own folder cannot be replaced; choose a folder in it"
        )
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    own = (*OWN_FILES, ".DS_Store")
    if strangers := [name for name in names if name not in own and not SHARD_FILE.fullmatch(name)]:
        raise UsageError(
            f"--out {out}: not empty, and {strangers[0]} was not written by prepare, which replaces"
            " the whole folder; choose another folder"
        )
    if names and REPORT_FILE not in names:
        raise UsageError(
            f"--out {out}: not empty, and not written by prepare; choose another folder"
        )
    if inside := [word for word in inputs if out in Path(word).resolve().parents]:
        raise UsageError(
            f"--out {out}: the input {inside[0]} lies in it, and would be replaced; choose another"
            " folder"
        )


def beside(out: Path, kind: str) -> Path:
    """A folder of this process beside `out`."""
    return out.with_name(f"{out.name}.{kind}-{os.uname().nodename}-{os.getpid()}")


def clear_remains(out: Path) -> None:
    """What a process that was killed on this machine left beside `out`: shards half written go;
    those that were to be replaced come back, where it died before the new ones were in their place.
    """
    host = re.escape(os.uname().nodename)
    remains = re.compile(rf"{re.escape(out.name)}\.({STAGING}|{REPLACED})-{host}-([0-9]+)")
    for path in sorted(out.parent.iterdir()) if out.parent.is_dir() else []:
        found = remains.fullmatch(path.name)
        if not found or _lives(int(found[2])):
            continue
        if found[1] == REPLACED and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether a process of this machine has this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def replace_folder(staging: Path, out: Path) -> None:
    """Put `staging` in the place of `out`; what was there comes back where that fails."""
    old = beside(out, REPLACED)
    try:
        if out.exists():
            out.rename(old)
        staging.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
    shutil.rmtree(old, ignore_errors=True)
