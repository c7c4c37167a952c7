"""Queries encoded by the model that built an index, loaded once, on this machine's GPU or CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from danbooru_index.choices import Device, Precision
from danbooru_index.embeddings import Array
from danbooru_index.errors import ModelError
from danbooru_index.index.catalog import Generation
from danbooru_index.model.checkpoint import resolve_model
from danbooru_index.model.device import probe_device
from danbooru_index.model.numpy_model import NumpyEncoder
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.search.query import shortened
from danbooru_index.search.retriever import EncodedQuery, query_of

if TYPE_CHECKING:
    from danbooru_index.model.encoder import Encoder


class QueryEncoder:
    """The model that built an index, for queries: loaded once, on this machine's GPU or CPU."""

    def __init__(
        self,
        generation: Generation,
        model: str | None = None,
        device: Device = Device.AUTO,
        instruction: str | None = None,
    ) -> None:
        built = generation.manifest.model
        name = model or built.place
        checkpoint = resolve_model(name)
        if checkpoint.model_id != built.id:
            raise ModelError(
                f"this index was built by {built.name} (id {built.id[:12]}), but {name} is another"
                f" model (id {checkpoint.model_id[:12]}): pass --model with the one that built it"
            )
        info = probe_device(device, Precision.AUTO)
        precision = Precision.FP16 if info.kind == "cuda" else Precision.FP32
        longest = generation.manifest.fingerprint.max_length
        self._tokenizer = Tokenizer(checkpoint.path, longest, plain=True)
        codec = generation.load_codec()
        matrix = None if codec is None else codec.matrix
        self._encoder = _loaded(checkpoint.path, Device(info.kind), precision, matrix)
        self._instruction = (
            generation.manifest.query_instruction if instruction is None else instruction
        )

    def piece(self, token: int) -> str:
        """A token as the tokenizer writes it; a word begins with `▁`."""
        return str(self._tokenizer.backend.id_to_token(token))

    def __call__(self, queries: list[str]) -> list[EncodedQuery]:
        """Encode queries, the index's query instruction before each."""
        embeddings = self._encoder.encode(
            self._tokenizer([self._instruction + query for query in queries])
        )
        if len(embeddings.non_finite):
            raise ModelError(
                "the model has no finite output for the query"
                f" {shortened(queries[int(embeddings.non_finite[0])])!r}"
            )
        return [query_of(embeddings, row, query) for row, query in enumerate(queries)]


def _loaded(
    path: str, device: Device, precision: Precision, projection: Array | None
) -> Encoder | NumpyEncoder:
    """The model: by NumPy alone where it is small and runs on the CPU, else by torch."""
    small = NumpyEncoder.load(path, projection) if device is Device.CPU else None
    if small is not None:
        return small
    from danbooru_index.model.encoder import Encoder

    return Encoder(path, device, precision, projection=projection, plain=True)
