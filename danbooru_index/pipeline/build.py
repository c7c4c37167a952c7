"""The build: list shards, subtract the completed, tokenise, encode and write under Ray Data, commit, check, publish.

One shard travels as one row. The completion records, not Ray, decide what is done; see `tables` and `generations`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np

from danbooru_index.cluster.resources import TOKENIZER_CPUS, ClusterPlan, on_worker, plan_cluster
from danbooru_index.cluster.session import cluster_address, ray_runs, ray_session
from danbooru_index.config import BuildConfig, Device, Precision
from danbooru_index.embeddings import Encoding
from danbooru_index.errors import (
    BuildFailedError,
    ClusterError,
    DeviceError,
    ModelError,
    RejectedRecordsError,
    StorageError,
    UsageError,
    first_line,
)
from danbooru_index.failpoints import armed, reach
from danbooru_index.index import compaction
from danbooru_index.index.catalog import Generation, IndexRoot
from danbooru_index.index.codec import Codec, Fidelity
from danbooru_index.index.completion import CompletionRecord, read_records
from danbooru_index.index.estimate import index_bytes
from danbooru_index.index.lifecycle import begin, check_tables, count_rejects, end
from danbooru_index.index.manifest import Fingerprint, Manifest
from danbooru_index.index.reader import GenerationReader
from danbooru_index.ingest.sampling import Sample, choose_samples
from danbooru_index.ingest.shards import Shard, find_parquet, list_shards, mark_duplicates, read_shard
from danbooru_index.model.checkpoint import Checkpoint, default_model, hidden_size, longest_text
from danbooru_index.model.device import DeviceInfo, nvidia_driver, probe_device
from danbooru_index.pipeline import protocol
from danbooru_index.pipeline.encode_stage import EncodeShard
from danbooru_index.pipeline.model_preload import Lookahead
from danbooru_index.pipeline.progress_actor import Board
from danbooru_index.pipeline.projection import obtain, refuse_below
from danbooru_index.pipeline.protocol import Receipt, WorkerSettings, check_row, task_row
from danbooru_index.pipeline.report import BuildReport, ShardCounts, encoding_seconds
from danbooru_index.pipeline.report_plot import save_report
from danbooru_index.pipeline.self_check import self_queries
from danbooru_index.pipeline.tokenize_stage import TokenizeShard
from danbooru_index.progress import Progress, StartUp
from danbooru_index.records import describe_rejects
from danbooru_index.storage.local import owned, remove_tree, replace_file
from danbooru_index.storage.s3 import Location
from danbooru_index.storage.space import free_bytes
from danbooru_index.versions import check_versions

SAMPLES = 16
ATTEMPTS = 2
SOLO_ATTEMPTS = 2
TASKS_IN_FLIGHT = 16


@dataclass(slots=True)
class Run:
    """What one call of `build` knows and has measured so far."""

    config: BuildConfig
    started: float
    shards: list[Shard]
    checkpoint: Checkpoint
    plan: ClusterPlan
    device: DeviceInfo
    recipe: WorkerSettings
    generation: Generation
    notes: list[str]
    skipped: int = 0
    samples: list[Sample] = field(default_factory=list)
    encoding: Encoding | None = None
    sampling: str = "their worker went away"
    failed: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, int] = field(default_factory=dict)  # records read, by shard
    progress: Progress | None = None

    @property
    def fingerprint(self) -> str:
        return self.generation.manifest.fingerprint_digest


def build(config: BuildConfig) -> BuildReport:
    """Build (or go on building) an index of the shards and publish it; return the report.

    Raises `UsageError`, `InputError`, `ModelError`, `DeviceError`, `ClusterError` or `StorageError` before any work,
    `BuildFailedError` when shards failed or a check did. Whatever ends it, the same call goes on from the completed
    shards.
    """
    check_versions()
    root = IndexRoot(config.index)
    find_parquet(config.shards)  # before anything is made for a path that was mistyped
    root.create()
    with owned(root.path):
        return build_owned(config, root)


def build_owned(config: BuildConfig, root: IndexRoot) -> BuildReport:
    """`build`, for a caller that owns the index already."""
    with StartUp() as start_up:
        return _build_owned(config, root, start_up)


def _build_owned(config: BuildConfig, root: IndexRoot, start_up: StartUp) -> BuildReport:
    started = time.monotonic()
    whole = config.encoder is None
    start_up.step("finding the model")
    named = config.model or (default_model("cpu") if _without_gpu(config) else None)
    model = Lookahead(named, whole=whole) if named else None
    start_up.step("reading the input")
    shards = mark_duplicates(list_shards(config.shards))
    if config.strict:
        _refuse_rejects(shards)
    try:
        if model is not None:
            start_up.step("checking the model")
            model.look(shards, config.max_length)
        start_up.step("starting Ray" if cluster_address(config.address) is None else "joining Ray")
        with ray_session(config.address) as inherited, armed(config.failpoints):
            start_up.step("planning")
            plan = plan_cluster(config, len(shards), inherited=inherited)
            if model is None:
                model = Lookahead(default_model(plan.device.value), whole=whole).look(shards, config.max_length)
            return _build(config, started, shards, root, model, plan, start_up)
    except KeyboardInterrupt:
        raise BuildFailedError("stopped; completed shards are kept: run the same command to go on") from None
    except OSError as error:
        raise StorageError(f"{error.filename or config.index}: {error.strerror or error}") from None


def _refuse_rejects(shards: list[Shard]) -> None:
    """Under `--strict`, before anything else is done: raise `RejectedRecordsError` for records that cannot be used."""
    reasons: Counter[str] = Counter()
    first = ""
    for shard in shards:
        for reject in read_shard(shard)[1]:
            reasons[reject.reason.value] += 1
            first = first or f"{reject.source}:{reject.line} {reject.reason.value} {reject.detail}".rstrip()
    if reasons:
        raise RejectedRecordsError(
            f"{reasons.total():,} of {sum(shard.rows for shard in shards):,} records would be rejected "
            f"({describe_rejects(reasons)}); the first: {first}; nothing was built because of --strict"
        )


def _without_gpu(config: BuildConfig) -> bool:
    """Whether it is plain, before Ray starts, that no GPU will be found."""
    alone = cluster_address(config.address) is None
    return config.device is Device.CPU or (alone and nvidia_driver() is None and not ray_runs())


def _build(
    config: BuildConfig,
    started: float,
    shards: list[Shard],
    root: IndexRoot,
    model: Lookahead,
    plan: ClusterPlan,
    start_up: StartUp,
) -> BuildReport:
    device = _on_worker(plan, config)
    checkpoint = model.checkpoint()
    hidden = _checked_hidden_size(checkpoint, config.max_length)
    recipe = _recipe(config, plan, device, checkpoint, hidden)
    fingerprint = Fingerprint(checkpoint.model_id, device.precision, config.max_length)
    projected = None
    if recipe.colbert_dim < hidden:
        start_up.step("fitting the projection")
        projected = obtain(root, fingerprint, _input_digest(shards), shards, plan, recipe)
        refuse_below(projected[1], config.min_fidelity)
        fingerprint = replace(fingerprint, codec=projected[0].name)
    wanted = _wanted(config, shards, checkpoint, fingerprint, recipe, projected)
    beginning = begin(root, wanted, projected[0] if projected else None, strict=config.strict)
    run = Run(config, started, shards, checkpoint, plan, device, recipe, beginning.generation, beginning.notes)
    if beginning.finished:
        return _report(run, _records(run, sealed=True), "already published: nothing to do")
    done = _records(run)
    run.skipped = len(done)
    pending = [shard for shard in shards if shard.id not in done]
    if pending:
        tokens_per_text = model.tokens_per_text()
        _check_space(run, pending, tokens_per_text)
        shard_tokens = int(tokens_per_text * max(shard.rows for shard in pending))
        run.recipe = replace(recipe, shard_tokens=shard_tokens)
    run.samples = choose_samples(shards, SAMPLES)
    start_up.step("loading the model in its actors")
    _encode(run, pending, start_up)
    reach("build.encoded")
    return _finish(run, root)


def _checked_hidden_size(checkpoint: Checkpoint, max_length: int) -> int:
    """The model's width; raise `UsageError` for texts longer than it has positions for."""
    longest = longest_text(checkpoint)
    if max_length > longest:
        raise UsageError(f"--max-length {max_length}: {checkpoint.name} takes at most {longest} tokens")
    return hidden_size(checkpoint)


def _on_worker(plan: ClusterPlan, config: BuildConfig) -> DeviceInfo:
    """The device and precision as a worker with the encoder's resources sees them; a simulated one says so itself."""
    if (simulated := getattr(config.encoder, "device", None)) is not None:
        return cast(DeviceInfo, simulated)
    wanted = Device.CUDA if plan.device is Device.CUDA else config.device
    if plan.device is Device.CPU and plan.local:
        info = probe_device(wanted, config.precision)
    else:
        info = _probe_remotely(plan, wanted, config.precision)
    if info.kind != plan.device.value:
        raise DeviceError(
            f"Ray offers no GPU here, but torch sees a {info.name}: start Ray where it sees the card (CUDA_VISIBLE_DEVICES, "
            "ray start --num-gpus 1), or pass --device cpu"
        )
    return info


def _probe_remotely(plan: ClusterPlan, device: Device, precision: Precision) -> DeviceInfo:
    def probe(device: Device, precision: Precision) -> DeviceInfo | str:
        try:
            return probe_device(device, precision)
        except DeviceError as error:
            return str(error)

    answer: DeviceInfo | str = on_worker(plan.num_gpus, TOKENIZER_CPUS, probe, device, precision)
    if isinstance(answer, str):
        raise DeviceError(answer)
    return answer


def _recipe(
    config: BuildConfig, plan: ClusterPlan, device: DeviceInfo, checkpoint: Checkpoint, hidden: int
) -> WorkerSettings:
    """What every actor of this build needs to make its tokeniser or encoder; raise `UsageError` for too wide a codec."""
    if config.colbert_dim and config.colbert_dim > hidden:
        raise UsageError(f"--colbert-dim {config.colbert_dim}: {checkpoint.name} has {hidden} values a vector")
    return WorkerSettings(
        model=checkpoint.name,
        model_path=checkpoint.path,
        model_id=checkpoint.model_id,
        model_stamp=checkpoint.stamp,
        device=plan.device.value,
        precision=device.precision,
        max_length=config.max_length,
        dim=hidden,
        colbert_dim=config.colbert_dim or hidden,
        tokens_per_batch=config.tokens_per_batch,
        threads=plan.threads,
        failpoints=config.failpoints,
        hang_s=protocol.HANG_S,
        slice_bytes=protocol.SLICE_BYTES,
        encoder=config.encoder,
    )


def _wanted(
    config: BuildConfig,
    shards: list[Shard],
    checkpoint: Checkpoint,
    fingerprint: Fingerprint,
    recipe: WorkerSettings,
    projected: tuple[Codec, Fidelity] | None,
) -> Manifest:
    """What the generation of this build must be."""
    return Manifest(
        id="",
        fingerprint=asdict(fingerprint),
        fingerprint_digest=fingerprint.digest,
        model={"name": checkpoint.name, "path": checkpoint.path, "id": checkpoint.model_id},
        dim=recipe.dim,
        colbert_dim=recipe.colbert_dim,
        input_digest=_input_digest(shards),
        shards=[shard.id for shard in shards],
        input=config.shards,
        query_instruction=config.query_instruction,
        codec=asdict(projected[1]) if projected else {},
    )


def _input_digest(shards: list[Shard]) -> str:
    return hashlib.sha256(json.dumps([(s.id, s.drop) for s in shards]).encode()).hexdigest()


def _records(run: Run, *, sealed: bool = False) -> dict[str, CompletionRecord]:
    shards, compacted = [shard.id for shard in run.shards], run.generation.manifest.compacted_parts
    return read_records(run.generation.path, shards, run.fingerprint, sealed=sealed, compacted=compacted)


def _check_space(run: Run, pending: list[Shard], tokens_per_text: float) -> None:
    """Refuse a build whose tables would not fit the disk, before it begins."""
    records = sum(shard.rows for shard in pending)
    needed = index_bytes(records, run.recipe.dim, run.recipe.colbert_dim, tokens_per_text)
    free = free_bytes(run.generation.path)
    if needed > free:
        raise StorageError(
            f"{run.config.index}: the tables of {records:,} records need about {needed / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free; free some space, or put --index on a larger disk"
        )
    run.notes.append(f"tables of about {needed / 1e6:,.1f} MB to come; {free / 1e9:,.0f} GB free")
    if len(pending) >= compaction.FRAGMENTS and records < len(pending) * compaction.SMALL_ROWS:
        run.notes.append(
            f"{len(pending):,} shards of {records / len(pending):,.0f} records each on average keep a device waiting; "
            f"danbooru-index prepare {run.config.shards} --out FOLDER makes larger ones of them"
        )


def _encode(run: Run, pending: list[Shard], start_up: StartUp) -> None:
    """All pending shards; then those that may have killed their actor, each alone, so that it takes no other along."""
    with contextlib.ExitStack() as stack:
        attempts = run.generation.path.resolve() / f"attempts-{uuid.uuid4().hex[:8]}"
        stack.callback(remove_tree, attempts)
        run.progress = Progress(sum(shard.rows for shard in pending), run.started, start_up=start_up)
        stack.callback(run.progress.close)
        suspects = _run_pipeline(run, pending, attempts / "all", ATTEMPTS, alone=False)
        if suspects or run.encoding is None:
            alone = [shard for shard in pending if shard.id in suspects]
            for shard, message in _run_pipeline(run, alone, attempts / "alone", SOLO_ATTEMPTS, alone=True).items():
                run.failed[shard] = f"given up: {message}, alone"


def _run_pipeline(run: Run, shards: list[Shard], attempts: Location, limit: int, *, alone: bool) -> dict[str, str]:
    """Run shards through the two stages; return the suspects, by id, with why."""
    import ray
    from ray.exceptions import RayError

    suspects: dict[str, str] = {}
    samples = [] if run.encoding is not None else run.samples
    # The samples first: among the last tasks they would count as one device's share, and another get a shard too many.
    items = ([check_row([s.text for s in samples])] if samples else []) + [task_row(shard) for shard in shards]
    if not items:
        return suspects
    board = ray.remote(num_cpus=0)(Board).remote()
    try:
        with _watching(run, board):
            dataset = _dataset(run, items, _settings(run, attempts, limit, board), alone=alone)
            for batch in dataset.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow"):
                receipt = Receipt(**json.loads(batch["receipt"][0].as_py()))
                _take(run, receipt, batch["payload"][0].as_py(), suspects)
    except RayError as error:
        raise ClusterError(
            f"Ray went away ({first_line(error)}); completed shards are kept: run the same command to go on"
        ) from None
    finally:
        with contextlib.suppress(Exception):
            ray.kill(board)
    return suspects


def _take(run: Run, receipt: Receipt, payload: bytes, suspects: dict[str, str]) -> None:
    """Note what became of one shard."""
    if receipt.fatal:
        raise ModelError(receipt.message)
    if receipt.shard == "check":
        if receipt.state == "done":
            run.encoding = _unpack(payload)
        else:
            run.sampling = receipt.message
    elif receipt.state == "done":
        run.fresh[receipt.shard] = receipt.read
    elif receipt.state == "suspect":
        suspects[receipt.shard] = receipt.message
    else:
        run.failed[receipt.shard] = receipt.message


def _unpack(payload: bytes) -> Encoding:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return Encoding(**{name: arrays[name] for name in arrays.files})


def _settings(run: Run, attempts: Location, limit: int, board: Any) -> WorkerSettings:
    return replace(
        run.recipe,
        generation=str(run.generation.path.resolve()),
        fingerprint=run.fingerprint,
        codec=run.generation.manifest.fingerprint["codec"],
        attempts=str(attempts.resolve()),
        attempt_limit=limit,
        board=board,
    )


def _dataset(run: Run, items: list[dict[str, str]], settings: WorkerSettings, *, alone: bool) -> Any:
    """The Ray Data pipeline: tasks -> token ids -> receipts."""
    import ray

    _configure_ray_data()
    plan = run.plan
    flight = 1 if alone else TASKS_IN_FLIGHT
    tokenizers = ray.data.ActorPoolStrategy(
        size=1 if alone else max(1, min(plan.tokenizers, len(items))), max_tasks_in_flight_per_actor=flight
    )
    # A smaller `min_size` lets Ray Data end encoders that wait for the first shard: measured, 8 worked like 4.7.
    encoders = ray.data.ActorPoolStrategy(
        min_size=1 if alone else plan.encoders,
        max_size=1 if alone else max(plan.encoders, plan.max_encoders or len(items)),
        initial_size=1 if alone else plan.encoders,
        max_tasks_in_flight_per_actor=1 if alone else plan.calls + 1,
        max_concurrent_calls_per_actor=1 if alone else plan.calls,
        enable_true_multi_threading=True,
    )
    common: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "fn_constructor_args": (settings,)}
    common["runtime_env"] = plan.runtime_env
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(TokenizeShard, compute=tokenizers, num_cpus=TOKENIZER_CPUS, **common)
        .map_batches(
            EncodeShard,
            compute=encoders,
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus or None,
            **common,
        )
    )


def _configure_ray_data() -> None:
    """Ray Data's settings, on purpose: bounded retries, no time limit between receipts, nothing printed."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    # A pool that has a task more in flight than calls never comes to Ray's 1.75, and would not take a GPU that joins.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.actor_init_retry_on_errors = False
    context.max_consecutive_actor_init_deaths = 3
    context.retried_map_errors = False
    context.max_map_retries = 0
    context.max_errored_blocks = -1


@contextlib.contextmanager
def _watching(run: Run, board: Any) -> Iterator[None]:
    """Feed the progress bar from the board, once a second, in a thread."""
    import ray

    ended = threading.Event()

    def watch() -> None:
        told = 0
        while not ended.wait(1.0):
            with contextlib.suppress(Exception):
                done = run.fresh.copy()
                underway = board.underway.remote(list(done)[told:])
                told = len(done)
                if run.progress is not None:
                    run.progress.show(sum(done.values()) + ray.get(underway, timeout=1))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.5)
        if run.progress is not None:
            run.progress.show(sum(run.fresh.values()))


def _finish(run: Run, root: IndexRoot) -> BuildReport:
    """Every shard has its record: commit, check, seal, publish. Else say which have not, and publish nothing."""
    records = _records(run)
    missing = [shard for shard in run.shards if shard.id not in records]
    run.failed = {shard.id: run.failed[shard.id] for shard in missing if shard.id in run.failed}
    for shard in missing:
        run.failed.setdefault(shard.id, "no completion record: its worker went away; run the same command to go on")
    if missing and not (run.config.allow_failed_shards and records):
        named = "; ".join(f"{shard.id} ({shard.path}): {run.failed[shard.id]}" for shard in missing[:5])
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BuildFailedError(
            f"{len(missing)} of {len(run.shards)} shards failed, nothing was published: {named}{more}; run the same "
            "command to try them again, or add --allow-failed-shards to publish without them"
        )
    ordered = [records[shard.id] for shard in run.shards if shard.id in records]
    if not sum(record.rows for record in ordered):
        reasons = describe_rejects(count_rejects(ordered))
        raise BuildFailedError(f"every record was rejected ({reasons}): nothing to publish")
    if run.config.strict and any(record.rejects for record in ordered):
        counts = count_rejects(ordered)
        raise RejectedRecordsError(f"{describe_rejects(counts)}: nothing was published because of --strict")
    ending = end(root, run.generation, ordered, [shard.id for shard in missing], lambda _, made: _check(run, made))
    report = _report(run, records, "published")
    report.seconds.commit, report.seconds.verify = ending.commit, ending.verify
    report.seconds.compact, report.seconds.index = ending.compact, ending.index
    report.notes += ending.notes
    report.seconds.total = time.monotonic() - run.started
    try:
        save_report(report, run.generation.path)
    except Exception as error:  # published already: a picture that cannot be drawn changes nothing
        report.notes.append(f"report.json or report.svg could not be written ({first_line(error)})")
    return report


def _check(run: Run, records: list[CompletionRecord]) -> dict[str, Any]:
    """The checks that a generation must pass to be published; raise `BuildFailedError` with what did not."""
    checks = check_tables(run.generation, records)
    if run.encoding is None:
        raise BuildFailedError(
            f"the sampled records could not be encoded again ({run.sampling}); nothing was published"
        )
    kept = _samples_kept(run, records)
    samples = [sample for sample, keep in zip(run.samples, kept, strict=True) if keep]
    if problems := self_queries(GenerationReader(run.generation), samples, run.encoding.keep(kept)):
        raise BuildFailedError(f"checks failed, nothing was published: {'; '.join(problems[:5])}")
    return checks | {"self_queries": int(kept.sum()), "passed": [*checks["passed"], "self_queries"]}


def _samples_kept(run: Run, records: list[CompletionRecord]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which samples must be in the tables: not those of failed shards, nor those whose output was not finite."""
    done = {record.shard for record in records}
    gone = {reject["detail"].removeprefix("id ") for record in records for reject in record.rejects}
    bad = set(run.encoding.bad.tolist()) if run.encoding else set()
    return np.array(
        [s.shard in done and s.id not in gone and place not in bad for place, s in enumerate(run.samples)], dtype=bool
    )


def _report(run: Run, records: dict[str, CompletionRecord], state: str) -> BuildReport:
    manifest = run.generation.manifest
    report = BuildReport(
        index=run.config.index,
        generation=run.generation.id,
        state=state,
        model=run.checkpoint.name,
        model_id=run.checkpoint.model_id,
        device=run.device.name,
        precision=run.device.precision,
        fingerprint=run.fingerprint,
        notes=run.notes,
        codec={"name": manifest.fingerprint["codec"], "colbert_dim": manifest.colbert_dim, **manifest.codec},
    )
    summaries = {shard: _summary(record) for shard, record in records.items()}
    for summary in summaries.values():
        report.add_shard(summary)
    fresh = [summaries[shard] for shard in run.fresh if shard in summaries]
    measured = [summary["measured"] for summary in fresh]
    if measured:
        report.seconds.encode = encoding_seconds(measured, time.monotonic() - run.started)
    report.add_work(fresh, run.device.name)
    total = len(run.shards)
    report.shards = ShardCounts(
        total, run.skipped or total - len(run.fresh) - len(run.failed), len(run.fresh), len(run.failed)
    )
    report.failed_shards = [{"shard": shard, "message": message} for shard, message in run.failed.items()]
    if report.rejected:
        path = run.generation.path / "rejects.jsonl"
        lines = [
            json.dumps(reject, ensure_ascii=False)
            for shard in manifest.shards
            if shard in records
            for reject in records[shard].rejects
        ]
        replace_file(path, ("\n".join(lines) + "\n").encode())
        report.rejects_file = str(path)
    report.seconds.total = time.monotonic() - run.started
    if fresh and run.progress is not None:
        offset = time.time() - time.monotonic()
        first = min(m["started"] for m in measured) - offset
        report.seconds.startup = min(max(0.0, first - run.started), report.seconds.total - report.seconds.encode)
        report.timeline = run.progress.timeline
    return report


def _summary(record: CompletionRecord) -> dict[str, Any]:
    """A completion record without fragments and rejects: what the report counts."""
    return {
        "rows": record.rows,
        "read": record.read,
        "rejected": dict(count_rejects([record])),
        "measured": record.measured,
        "bytes": sum(part.bytes for part in record.tables.values()),
    }


def exit_code(report: BuildReport, config: BuildConfig) -> int:
    """0, or 3 where records or shards were left out beyond `--max-rejects`."""
    rejected = sum(report.rejected.values())
    return 3 if report.shards.failed or not config.max_rejects.allows(rejected, report.read) else 0
