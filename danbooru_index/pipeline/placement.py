"""Before anything is encoded: does every node see the index, the shards and the model?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from danbooru_index.cluster.other_nodes import on_other_nodes
from danbooru_index.errors import ClusterError, DanbooruIndexError
from danbooru_index.ingest.shards import Shard
from danbooru_index.pipeline.protocol import WorkerSettings
from danbooru_index.pipeline.sight import show
from danbooru_index.pipeline.worker_device import invented_cards
from danbooru_index.pipeline.worker_model import local_model
from danbooru_index.storage.base import Storage


def seen_by_all(
    settings: WorkerSettings, attempts: Storage, shards: Sequence[Shard]
) -> WorkerSettings:
    """The settings, with what every node must see, after every other node has looked at it; a model
    of the hub is fetched by that, once a node. Raises `ClusterError` with the node and the path.
    """
    settings = replace(settings, sight=show(attempts, shards))
    answers = on_other_nodes(_problem_here, settings)
    if problems := [(node, said) for node, said in answers.items() if said]:
        [node, problem], *more = problems
        others = f" ({len(more)} more of the nodes say so)" if more else ""
        raise ClusterError(f"node {node}: {problem}{others}; nothing was encoded")
    return settings


def _problem_here(settings: WorkerSettings) -> str:
    """What this node does not see, in a line; empty where it sees all."""
    if settings.sight is not None and (problem := settings.sight.problem()):
        return problem
    if settings.device == "cuda" and settings.encoder is None and (problem := invented_cards()):
        return problem
    try:
        local_model(settings)
    except DanbooruIndexError as error:
        return str(error)
    return ""
