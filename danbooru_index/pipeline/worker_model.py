"""The model on a worker's node: tokenizer and encoder of the folder, checked by its id."""

from __future__ import annotations

import os
from pathlib import Path

from danbooru_index.choices import Device, Precision
from danbooru_index.errors import ClusterError, DanbooruIndexError, ModelError
from danbooru_index.index.codec import load_codec
from danbooru_index.model.checkpoint import model_id, resolve_model, stamp_of
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.model.tuning import EncoderTuning
from danbooru_index.pipeline.protocol import WorkerSettings


def load_tokenizer(settings: WorkerSettings) -> Tokenizer:
    """The tokenizer of the model. Raises `ModelError`."""
    return Tokenizer(local_model(settings), settings.max_length, plain=True)


def load_encoder(settings: WorkerSettings) -> Encoder:
    """The encoder. Raises `ModelError`, `DeviceError`, or `StorageError` for its codec."""
    codec = load_codec(settings.generation, settings.codec)
    encoder = Encoder(
        local_model(settings),
        Device(settings.device),
        Precision(settings.precision),
        tuning=EncoderTuning(tokens_per_batch=settings.tokens_per_batch),
        threads=settings.threads,
        half_output=True,
        projection=None if codec is None else codec.matrix,
        plain=True,
    )
    encoder.prepare(settings.shard_tokens)
    return encoder


def refuse_blindness(settings: WorkerSettings) -> None:
    """Raise `ClusterError` on a node that does not see the index or the shards: one that joined
    while others work.
    """
    if settings.sight is not None and (problem := settings.sight.blindness()):
        raise ClusterError(f"node {os.uname().nodename}: {problem}")


def local_model(settings: WorkerSettings) -> str:
    """The model's folder on this machine, fetched if it is not here. Raises `ModelError`."""
    path = settings.model_path
    if not Path(path).is_dir():
        try:
            path = resolve_model(settings.model).path
        except DanbooruIndexError as error:
            raise ModelError(
                f"{settings.model_path} is not on node {os.uname().nodename}; put the model on"
                f" shared storage ({error})"
            ) from None
    if stamp_of(Path(path)) != settings.model_stamp and model_id(Path(path)) != settings.model_id:
        raise ModelError(
            f"{path} on node {os.uname().nodename} is not the model this build began with"
        )
    return path
