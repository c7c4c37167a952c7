"""The oldest safe versions, checked at the start of every command."""

from __future__ import annotations

import re

from danbooru_index.errors import InstallationError

INSTALL = "pip install -c constraints.txt torch -e . brings what is needed"
FLOORS = {
    "ray": ("2.56", "CVE-2026-41486: reading a Parquet file could run code"),
    "torch": ("2.10", "pickles could slip past weights_only"),
    "transformers": ("5.3", "checkpoints could run code"),
    "FlagEmbedding": ("1.4.2", "older ones do not import with transformers 5"),
}


def check_versions() -> None:
    """Raise `InstallationError` for a library that is missing or older than its floor."""
    if problems := version_problems():
        raise InstallationError(f"{'; '.join(problems.values())}: {INSTALL}")


def version_problems() -> dict[str, str]:
    """What is wrong, by library: it is missing, or older than its floor."""
    from importlib.metadata import PackageNotFoundError, version  # 10 ms, which --help never needs

    problems: dict[str, str] = {}
    for name, (floor, why) in FLOORS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            problems[name] = f"{name} is not installed"
            continue
        if _numbers(found) < _numbers(floor):
            problems[name] = f"{name} {found} is older than {floor} ({why})"
    return problems


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version, without suffixes: 2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", text)[0]))
