"""The Ray Data pipeline: tasks -> token ids -> results; two actor pools and their settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from danbooru_index.cluster.resources import TOKENIZER_CPUS, ClusterPlan
from danbooru_index.pipeline.encode_stage import EncodeShard
from danbooru_index.pipeline.progress_actor import wait_while_encoders_help
from danbooru_index.pipeline.protocol import TASK_ITEM, ShardResult, Task, WorkerSettings
from danbooru_index.pipeline.tokenize_stage import TokenizeShard

FETCH_S = 5.0


def make_dataset(
    plan: ClusterPlan,
    tasks: Sequence[Task],
    settings: WorkerSettings,
    tasks_in_flight: int,
    *,
    alone: bool,
) -> Any:
    """Tasks through both stages, one a row; `alone`: one after the other. With `settings.backups`
    its results end only some time after the last: whoever reads them stops when all are there.
    """
    import ray

    configure_ray_data()
    tokenizers = ray.data.ActorPoolStrategy(
        size=1 if alone else max(1, min(plan.tokenizers, len(tasks))),
        max_tasks_in_flight_per_actor=1 if alone else tasks_in_flight,
    )
    # A smaller `min_size` lets Ray Data end encoders that wait for the first shard: measured, 8
    # worked like 4.7.
    encoders = ray.data.ActorPoolStrategy(
        min_size=1 if alone else plan.encoders,
        max_size=1 if alone else max(plan.encoders, plan.max_encoders or len(tasks)),
        initial_size=1 if alone else plan.encoders,
        max_tasks_in_flight_per_actor=1 if alone else plan.calls + 1,
        max_concurrent_calls_per_actor=1 if alone else plan.calls,
        enable_true_multi_threading=True,
    )
    common: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "fn_constructor_args": (settings,),
    }
    common["runtime_env"] = plan.runtime_env
    items = ray.data.from_items([task.to_item() for task in tasks], override_num_blocks=len(tasks))
    tokenized = items.map_batches(
        TokenizeShard, compute=tokenizers, num_cpus=TOKENIZER_CPUS, **common
    )
    if settings.backups:
        tokenized = tokenized.union(waiting_input(settings, plan.runtime_env))
    return tokenized.map_batches(
        EncodeShard,
        compute=encoders,
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus or None,
        **common,
    )


def waiting_input(settings: WorkerSettings, runtime_env: dict[str, Any]) -> Any:
    """A dataset without rows that ends when encoders need not help each other any more.

    Ray Data lets go of idle actors, one a second, once all input is consumed, whatever `min_size`
    is (`DefaultActorAutoscaler`).
    """
    import ray

    return ray.data.from_items([{TASK_ITEM: b""}], override_num_blocks=1).map_batches(
        wait_while_encoders_help,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"progress": settings.progress},
        num_cpus=0,
        runtime_env=runtime_env,
        # beside this process, which lives as long
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )


def results_of(dataset: Any) -> Iterator[ShardResult]:
    """Run a dataset in this thread; its results as they come.

    `iter_batches` would run it in threads of its own, while this one waits for a lock that nothing
    can end (see `watch`).
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            block = _fetched(entry.ref)
            for row in range(block.num_rows):
                yield ShardResult.from_row(block.slice(row, 1))


def _fetched(reference: Any) -> Any:
    """What a reference holds. A node that has gone may have held it: looked for until it is made
    again.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    while True:
        with contextlib.suppress(GetTimeoutError):
            return ray.get(reference, timeout=FETCH_S)


def configure_ray_data() -> None:
    """Bounded retries, no time limit between results, nothing printed."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    # Utilisation here is (calls + 1) / calls, below Ray's default threshold of 1.75: the pool would
    # never scale up.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.actor_init_retry_on_errors = False
    context.max_consecutive_actor_init_deaths = 3
    context.retried_map_errors = False
    context.max_map_retries = 0
    context.max_errored_blocks = -1
