"""The driver's part of encoding: all pending shards through the pipeline, and what came back.

A shard that may have killed its actor is suspect: it is run again by itself, so that it takes no
other along.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from danbooru_index.cluster.ray_errors import ray_problem
from danbooru_index.embeddings import Embeddings
from danbooru_index.errors import ClusterError, ModelError
from danbooru_index.ingest.shards import Shard
from danbooru_index.log_lines import event
from danbooru_index.pipeline.dataset import make_dataset, results_of
from danbooru_index.pipeline.placement import seen_by_all
from danbooru_index.pipeline.plan import BuildPlan
from danbooru_index.pipeline.progress_actor import ProgressActor
from danbooru_index.pipeline.protocol import SAMPLES, Outcome, ShardResult, Task, WorkerSettings
from danbooru_index.pipeline.resume import Work
from danbooru_index.pipeline.watch import PassOverError, Watch
from danbooru_index.progress import Progress, StartUp
from danbooru_index.storage.base import Storage

log = logging.getLogger(__name__)

ATTEMPTS = 2
SOLO_ATTEMPTS = 2


@dataclass(slots=True)
class EncodeOutcome:
    """What came back of the pending shards: `done`, with the records read; `failed` and `suspects`,
    with why; the samples' embeddings, or why there are none, once there was an answer;
    `timeline`: (seconds since the command began, records encoded).
    """

    done: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    suspects: dict[str, str] = field(default_factory=dict)
    samples: Embeddings | None = None
    samples_answered: bool = False
    samples_problem: str = "their worker went away"
    timeline: list[tuple[float, int]] = field(default_factory=list)

    def take(self, result: ShardResult) -> None:
        """Note one result; raise `ModelError` for one that ends the run. What is done stays done,
        whatever becomes of a second attempt.
        """
        if result.outcome is Outcome.FATAL:
            raise ModelError(result.message)
        if result.shard == SAMPLES:
            self.samples, self.samples_problem = result.samples, result.message
            self.samples_answered = True
            return
        if result.shard in self.done:
            return
        _log(result)
        if result.outcome is Outcome.DONE:
            self.done[result.shard] = result.read
            self.failed.pop(result.shard, None)
            self.suspects.pop(result.shard, None)
        elif result.outcome is Outcome.SUSPECT:
            self.suspects[result.shard] = result.message
        else:
            self.failed[result.shard] = result.message

    @property
    def settled(self) -> set[str]:
        """The shards of which something has come back."""
        return {*self.done, *self.failed, *self.suspects}

    def has_all(self, shards: Set[str]) -> bool:
        """Whether something has come back of these shards, and of the samples."""
        most = len(self.done) + len(self.failed) + len(self.suspects)  # asked for each result
        return self.samples_answered and most >= len(shards) and self.settled >= shards


def _log(result: ShardResult) -> None:
    """A line for each shard, where lines are JSON."""
    what = f"shard {result.shard}: {result.outcome.value}"
    fields = {"shard": result.shard, "node": result.node, "records": result.read}
    log.debug(
        f"{what}, {result.message}" if result.message else what,
        extra=event(f"shard_{result.outcome.value}", **fields),
    )


def encode(plan: BuildPlan, work: Work, start_up: StartUp) -> EncodeOutcome:
    """All pending shards; then those that are suspect, each alone.

    Raises `ModelError` where no worker can load the model, `ClusterError` where Ray went away.
    """
    outcome, pending = EncodeOutcome(), work.pending
    with contextlib.ExitStack() as stack:
        attempts = work.generation.path.absolute() / f"attempts-{uuid.uuid4().hex[:8]}"
        stack.callback(attempts.remove_tree)
        records, reuses = sum(shard.rows for shard in pending), work.old is not None
        progress = Progress(records, plan.started, start_up=start_up, reuses=reuses)
        stack.callback(progress.close)
        settings = seen_by_all(work.settings, attempts, pending)
        run = _Run(plan, settings, outcome, progress, _shared(work.old))
        run.through(pending, attempts / "all", ATTEMPTS, alone=False)
        suspects = {shard.id for shard in pending} & outcome.suspects.keys()
        if suspects or outcome.samples is None:
            outcome.suspects.clear()
            again = [shard for shard in pending if shard.id in suspects]
            run.through(again, attempts / "alone", SOLO_ATTEMPTS, alone=True)
            outcome.failed |= {
                shard: f"given up: {why}, alone" for shard, why in outcome.suspects.items()
            }
        outcome.timeline = progress.timeline
    return outcome


@dataclass(frozen=True, slots=True)
class _Run:
    """What every pass of the pipeline shares."""

    plan: BuildPlan
    settings: WorkerSettings
    outcome: EncodeOutcome
    progress: Progress
    old: Sequence[Any] = ()

    def through(
        self, shards: Sequence[Shard], attempts: Storage, limit: int, *, alone: bool
    ) -> None:
        """Run shards through the two stages, and the samples if they have no embeddings yet."""
        import ray
        from ray.exceptions import RayError

        texts = (
            ()
            if self.outcome.samples is not None
            else tuple(s.text for s in self.plan.samples.checked)
        )
        # The samples first: among the last tasks they would count as one device's share, and
        # another get a shard too many.
        tasks = [*([Task(texts=texts)] if texts else []), *(Task(shard) for shard in shards)]
        if not tasks:
            return
        names = {shard.id for shard in shards}
        self.outcome.samples_answered = not texts
        told = _beside_this_process(ProgressActor, self.old)
        settings = replace(
            self.settings,
            attempts=attempts,
            attempt_limit=limit,
            progress=told,
            reuses=bool(self.old),
            backups=not alone and self.plan.cluster.max_encoders != 1,
        )
        flight = self.plan.config.tuning.tasks_in_flight
        watch = Watch(self.progress, self.outcome, shards, told, self.plan)
        try:
            with watch:
                dataset = make_dataset(self.plan.cluster, tasks, settings, flight, alone=alone)
                for result in results_of(dataset):
                    self.outcome.take(result)
                    if self.outcome.has_all(names):
                        break
        except PassOverError:
            watch.raise_if_no_node_is_left()
        except RayError as error:
            raise ClusterError(
                f"{ray_problem(error)}; completed shards are kept: run the same command to go on"
            ) from None
        finally:
            # Ray may be gone, and the actor with it
            with contextlib.suppress(RayError, OSError, RuntimeError, ValueError):
                ray.kill(told)


def _shared(value: object | None) -> Sequence[Any]:
    """A reference to a value, which actors of any node can read; none to None."""
    import ray
    from ray.exceptions import RayError

    try:
        return () if value is None else (ray.put(value),)
    except RayError as error:
        raise ClusterError(f"{ray_problem(error)}; run the same command to go on") from None


def _beside_this_process(actor: type, *arguments: object) -> Any:
    """An actor on this process's node: it lives as long as what it serves."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor).remote(*arguments)
