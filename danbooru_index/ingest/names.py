"""When two spellings mean one tag: names joined whatever their case, spaces or underscores."""

from __future__ import annotations

import re
import unicodedata


def name_key(name: str) -> str:
    """A tag's name in its normal form, by which dumps, translations and lists are joined."""
    folded = unicodedata.normalize("NFKC", name).strip().casefold()
    return re.sub(r"[\s_]+", "_", folded)
