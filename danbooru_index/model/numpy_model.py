"""A small model's forward pass by NumPy alone, for a query's sake: importing torch takes longer
than all else that one search does.

The numbers are those of `Encoder` in fp32 within single precision's rounding. One text at a time:
queries are few and short.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from danbooru_index.embeddings import Array, Embeddings, TokenBatch
from danbooru_index.model.checkpoint_files import HEADS, read_settings
from danbooru_index.model.tensor_files import NotForNumPyError, load_arrays
from danbooru_index.model.weights import check_weights, stored_backbone

LARGEST_BYTES = 64 << 20  # of weights: beyond, torch's matrix products earn their import
MANY_TOKENS = 512  # from which scipy's import pays
NORM_FLOOR = np.float32(1e-12)  # torch's, where a vector is normalised

Floats = npt.NDArray[np.float32]


class NumpyEncoder:
    """BGE-M3's three outputs of a few texts, on a CPU in fp32."""

    def __init__(
        self, tensors: dict[str, Array], settings: dict[str, Any], projection: Floats | None
    ) -> None:
        self._tensors, self._projection = tensors, projection
        self._heads = int(settings["num_attention_heads"])
        self._layers = int(settings["num_hidden_layers"])
        self._epsilon = np.float32(settings["layer_norm_eps"])
        self._first_position = int(settings.get("pad_token_id", 1)) + 1

    @classmethod
    def load(cls, path: str, projection: Floats | None = None) -> NumpyEncoder | None:
        """The model of a folder; None where it is large, or torch or FlagEmbedding is needed.

        Raises `ModelError` for tensors that are not those of its `config.json`.
        """
        folder = Path(path)
        settings = read_settings(folder)
        sizes = [file.stat().st_size for file in folder.iterdir() if file.is_file()]
        small = sum(sizes) <= LARGEST_BYTES
        known = settings.get("hidden_act", "gelu") == "gelu"
        if not small or not known or not check_weights(folder, settings).regular:
            return None
        try:
            tensors = stored_backbone(folder, load_arrays)
            for name in HEADS:
                head = load_arrays(folder / name).items()
                tensors |= {f"{name.removesuffix('.pt')}.{part}": array for part, array in head}
        except NotForNumPyError:
            return None
        single = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
        return cls(single, settings, projection)

    def encode(self, batch: TokenBatch) -> Embeddings:
        """The three outputs of every text, in order."""
        if batch.tokens > MANY_TOKENS:
            import scipy.special  # noqa: F401 (see `_erf`)
        starts = np.concatenate(([0], np.cumsum(batch.lengths)))
        texts = [self._encode_one(batch.token_ids[a:b], batch.special) for a, b in pairwise(starts)]
        dense = np.stack([text[0] for text in texts]) if texts else np.empty((0, 0), np.float32)
        colbert = np.concatenate([text[3] for text in texts]) if texts else dense
        finite = [all(np.isfinite(part).all() for part in text) for text in texts]
        return Embeddings(
            dense=dense,
            sparse_ids=_joined([text[1] for text in texts], np.int32),
            sparse_weights=_joined([text[2] for text in texts], np.float32),
            sparse_lengths=np.array([len(text[1]) for text in texts], np.int64),
            colbert=colbert,
            colbert_lengths=np.array([len(text[3]) for text in texts], np.int64),
            non_finite=np.flatnonzero(~np.array(finite, dtype=bool)),
        )

    def _encode_one(
        self, ids: npt.NDArray[np.int32], special: tuple[int, ...]
    ) -> tuple[Floats, npt.NDArray[np.int32], Floats, Floats]:
        """dense [D], sparse ids and weights, ColBERT [tokens - 1, C]."""
        hidden = self._hidden(ids)
        colbert = _normalised(self._linear(hidden[1:], "colbert_linear."))
        if self._projection is not None:
            colbert = _normalised(colbert @ self._projection)
        weights = np.maximum(self._linear(hidden, "sparse_linear.")[:, 0], 0)
        weights[np.isin(ids, special)] = 0
        known, places = np.unique(ids, return_inverse=True)
        largest = np.zeros(len(known), np.float32)
        np.maximum.at(largest, places, weights)
        kept = largest > 0
        return _normalised(hidden[0]), known[kept].astype(np.int32), largest[kept], colbert

    def _hidden(self, ids: npt.NDArray[np.int32]) -> Floats:
        """The last layer's output, [tokens, D]."""
        positions = np.arange(self._first_position, self._first_position + len(ids))
        words = self._tensors["embeddings.word_embeddings.weight"][ids]
        words = words + self._tensors["embeddings.token_type_embeddings.weight"][0]
        places = self._tensors["embeddings.position_embeddings.weight"][positions]
        hidden = self._layer_norm(words + places, "embeddings.LayerNorm.")
        for number in range(self._layers):
            at = f"encoder.layer.{number}."
            attended = self._linear(self._attention(hidden, at), f"{at}attention.output.dense.")
            hidden = self._layer_norm(attended + hidden, f"{at}attention.output.LayerNorm.")
            inner = _gelu(self._linear(hidden, f"{at}intermediate.dense."))
            closed = self._linear(inner, f"{at}output.dense.")
            hidden = self._layer_norm(closed + hidden, f"{at}output.LayerNorm.")
        return hidden

    def _attention(self, hidden: Floats, at: str) -> Floats:
        """Each token's sum of values, [tokens, D]."""
        query, key, value = (
            self._linear(hidden, f"{at}attention.self.{part}.")
            .reshape(len(hidden), self._heads, -1)
            .transpose(1, 0, 2)  # [heads, tokens, D / heads]
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        attended: Floats = (scores @ value).transpose(1, 0, 2).reshape(len(hidden), -1)
        return attended

    def _linear(self, values: Floats, at: str) -> Floats:
        product: Floats = values @ self._tensors[f"{at}weight"].T + self._tensors[f"{at}bias"]
        return product

    def _layer_norm(self, values: Floats, at: str) -> Floats:
        centred = values - values.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + self._epsilon)
        scaled: Floats = (
            centred / deviation * self._tensors[f"{at}weight"] + self._tensors[f"{at}bias"]
        )
        return scaled


def _gelu(values: Floats) -> Floats:
    error = _erf(values * np.float32(np.sqrt(0.5)))
    activated: Floats = values * np.float32(0.5) * (1 + error)
    return activated


def _erf(values: Floats) -> Floats:
    """The error function: by scipy where it is loaded, whose import takes longer than a query has
    values.
    """
    if "scipy.special" in sys.modules:
        from scipy.special import erf

        found: Floats = erf(values)
        return found
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(values), np.float32)


def _normalised(vectors: Floats) -> Floats:
    lengths = np.sqrt((vectors**2).sum(-1, keepdims=True))
    unit: Floats = vectors / np.maximum(lengths, NORM_FLOOR)
    return unit


def _joined(parts: list[Array], dtype: npt.DTypeLike) -> Array:
    return np.concatenate([np.empty(0, dtype), *parts])
