"""The model on a worker's node: the folder that the driver named, or fetched by name, checked by its id."""

from __future__ import annotations

import os
from pathlib import Path

from danbooru_index.errors import DanbooruIndexError, ModelError
from danbooru_index.model.checkpoint import model_id, resolve_model, stamp_of
from danbooru_index.pipeline.protocol import WorkerSettings


def local_model(settings: WorkerSettings) -> str:
    """The folder of the model on this machine; fetched where the driver's folder is not here. Raises `ModelError`."""
    path = settings.model_path
    if not Path(path).is_dir():
        try:
            path = resolve_model(settings.model).path
        except DanbooruIndexError as error:
            raise ModelError(
                f"{settings.model_path} is not on node {os.uname().nodename}; put the model on shared storage ({error})"
            ) from None
    if stamp_of(Path(path)) != settings.model_stamp and model_id(Path(path)) != settings.model_id:
        raise ModelError(f"{path} on node {os.uname().nodename} is not the model this build began with")
    return path
