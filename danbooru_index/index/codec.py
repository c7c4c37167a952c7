"""How a ColBERT matrix is stored: in full, or projected onto the input's main directions.

BGE-M3 is not trained to be truncated, so dimensions are never cut: an uncentred SVD of the input's
token vectors gives an orthonormal matrix [D, C]; vectors are multiplied by it and normalised again,
on the device, queries too. What that costs is measured on the same input before anything is built.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Matrices
from danbooru_index.errors import StorageError
from danbooru_index.storage.base import Storage

FULL = "full"
FILE = "codec.npy"
TOP = 10
RANKED = 100


@dataclass(frozen=True, slots=True)
class Codec:
    """A projection: `matrix` [D, C] float32, orthonormal columns; its name holds its checksum."""

    matrix: npt.NDArray[np.float32]

    @property
    def name(self) -> str:
        """What the fingerprint says: `svd-C-` and 32 hex digits over the matrix."""
        return f"{family(self.matrix.shape[1])}{hashlib.sha256(self.to_bytes()).hexdigest()[:32]}"

    def project(self, matrices: Matrices) -> Matrices:
        """Matrices with C values a vector instead of D, normalised again."""
        projected = matrices.vectors.astype(np.float32) @ self.matrix  # [T, C]
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return Matrices(projected / np.maximum(norms, 1e-12), matrices.lengths)

    def to_bytes(self) -> bytes:
        """The matrix as a `.npy` file."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(self.matrix), allow_pickle=False)
        return buffer.getvalue()


def family(dim: int) -> str:
    """How the names of all projections to `dim` values begin."""
    return f"svd-{dim}-"


def load_codec(generation: Storage, name: str) -> Codec | None:
    """The codec of a generation, by the name in its fingerprint; None for vectors in full.

    Raises `StorageError` where the file is not what the name says.
    """
    if name == FULL:
        return None
    path = generation / FILE
    try:
        content = path.read()
        if hashlib.sha256(content).hexdigest()[:32] == name.rpartition("-")[2]:
            # before anything parses it
            return Codec(np.load(io.BytesIO(content), allow_pickle=False))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path}: the ColBERT projection cannot be read ({str(error)[:120]})"
        ) from None
    raise StorageError(f"{path}: not the ColBERT projection that this generation was made with")


def fit(moment: npt.NDArray[Any], dim: int) -> tuple[Codec, float]:
    """The projection that keeps most of the vectors' energy, and the share it keeps.

    `moment` [D, D]: the sum of v vT over the vectors. Each direction's sign is fixed, so that equal
    sums give equal bytes.
    """
    energies, directions = np.linalg.eigh(moment)  # ascending
    kept = directions[:, ::-1][:, :dim]  # [D, C]: those of most energy first
    signs = np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(dim)])  # of the largest value
    return Codec((kept * signs).astype(np.float32)), float(
        energies[::-1][:dim].sum() / energies.sum()
    )


def energy_kept(moment: npt.NDArray[Any], codec: Codec) -> float:
    """The share of the energy of vectors that a projection keeps; `moment` [D, D] as for `fit`."""
    return float(np.einsum("dc,de,ec->", codec.matrix, moment, codec.matrix) / np.trace(moment))


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a projection costs: MaxSim rankings of `queries` texts over `records` records, against
    those of the full matrices. `overlap`: the mean share of the full top 10 found again;
    `spearman`: the mean rank correlation of the scores within the full top 100; `energy`: the share
    of the vectors' energy kept.
    """

    dim: int
    full_dim: int
    overlap: float
    spearman: float
    energy: float
    queries: int
    records: int
    fitted_on: int

    def to_text(self) -> str:
        return (
            f"ColBERT {self.full_dim} -> {self.dim} values: {self.overlap:.3f} of the full top"
            f" {TOP} found again, Spearman {self.spearman:.3f} ({self.queries:,} queries over"
            f" {self.records:,} records; fitted on {self.fitted_on:,})"
        )


def agreement(full: npt.NDArray[Any], projected: npt.NDArray[Any]) -> tuple[float, float]:
    """(overlap, Spearman) of two score matrices [queries, records]; ties may fall either way."""
    from scipy.stats import spearmanr

    top, ranked = min(TOP, full.shape[1]), min(RANKED, full.shape[1])
    overlaps, correlations = [], []
    for before, after in zip(full, projected, strict=True):
        best = np.argsort(-before, kind="stable")[:ranked]  # the full top 100
        found = np.argsort(-after, kind="stable")[:top]  # the projected top 10
        overlaps.append(float((before[found] >= before[best[top - 1]]).mean()))
        if np.ptp(before[best]) and np.ptp(after[best]):
            correlations.append(float(spearmanr(before[best], after[best]).statistic))
    return float(np.mean(overlaps)), float(np.mean(correlations)) if correlations else 1.0
