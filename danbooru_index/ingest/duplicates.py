"""Which ids occur twice in an input, in 8 bytes of memory an id; in 16 where their order is kept.

A first pass hands every id to `IdHashes`; only ids whose 64-bit hash occurs twice are looked at
again, by a `DuplicateFilter` in a second pass, which compares them by a 128-bit cryptographic hash.
Used by `prepare` and `scan`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


def hash64(text: str) -> int:
    """A 64-bit hash of `text` that is the same in every process (blake2b)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class IdHashes:
    """The hashes of every id seen."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, record_id: str) -> None:
        self._hashes.append(hash64(record_id))

    def update(self, record_ids: Iterable[str]) -> None:
        """Add several ids."""
        self._hashes.extend(map(hash64, record_ids))

    def extend(self, other: IdHashes) -> None:
        """Add what another has seen, in its order."""
        self._hashes.extend(other._hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def suspects(self, *, keep_order: bool = False) -> npt.NDArray[np.uint64]:
        """The sorted hashes that occur twice. Sorts in place unless `keep_order`."""
        if not self._hashes:
            return np.empty(0, dtype=np.uint64)
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)  # no copy
        if keep_order:
            hashes = hashes.copy()
        hashes.sort()
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])  # neighbours that are equal

    def among(self, suspects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the ids added, in their order, have one of these hashes, [ids]."""
        return np.isin(np.frombuffer(self._hashes, dtype=np.uint64), suspects)


class DuplicateFilter:
    """Decides, for ids in input order, which is a later duplicate; knows only the suspects."""

    def __init__(self, suspects: npt.NDArray[np.uint64]) -> None:
        self._suspects = suspects
        self._seen: set[bytes] = set()

    def is_suspect(self, record_id: str) -> bool:
        """Whether the id's hash occurs more than once in the input."""
        if not len(self._suspects):
            return False
        value = np.uint64(hash64(record_id))
        place = int(np.searchsorted(self._suspects, value))
        return place < len(self._suspects) and bool(self._suspects[place] == value)

    def is_duplicate(self, record_id: str) -> bool:
        """Whether this id was accepted before; if not, it is from now on."""
        if not self.is_suspect(record_id):
            return False
        digest = blake2b(record_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False
