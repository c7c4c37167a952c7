"""What must never be mixed; encoders that fail; stops. Builds under one real Ray, with the light
encoder mostly.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
from faults import (
    Outcome,
    chance_of,
    compare,
    contents,
    descendants,
    end_descendants,
    finish,
    head_node,
    kill,
    make_workbench,
    said,
    start,
)
from light import Light, Made, light_config

from danbooru_index.choices import Precision
from danbooru_index.config import Tuning
from danbooru_index.errors import BuildFailedError, DanbooruIndexError
from danbooru_index.failpoints import PAUSE_S, Failpoint
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import CompletionRecord, read_record, record_path
from danbooru_index.index.status import verify
from danbooru_index.model.packed_model import PackedModel
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.pipeline.build import build
from danbooru_index.pipeline.worker_model import load_encoder
from danbooru_index.search.tag_index import TagIndex

SHARD_ROWS = 60


@contextmanager
def one_ray():
    """A Ray of this process, which every `build` here uses."""
    import ray

    ray.init(
        address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


# ---- never mixed ----


def _settings(**options):
    return lambda bench, index: options


def _in_json(name, **fields):
    def edit(bench, index):
        path = bench.model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return {}

    return edit


def _flip(name):
    def edit(bench, index):
        path = bench.model / name
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        return {}

    return edit


def _other_score(bench, index):
    """One entry of the tokenizer's vocabulary a little less likely."""
    path = bench.model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"][100][1] -= 0.5
    path.write_text(json.dumps(tokenizer))
    return {}


def _in_manifest(name, value):
    """As a program of another version left it: the unfinished generation with one field of its
    fingerprint changed.
    """

    def edit(bench, index):
        generation = IndexRoot(index).generations()[-1]
        old = generation.manifest
        digest = f"{random.Random(name).getrandbits(128):032x}"
        edited = replace(
            old, fingerprint=replace(old.fingerprint, **{name: value}), fingerprint_digest=digest
        )
        replace(generation, manifest=edited).save()
        return {}

    return edit


def _with_table(change):
    """Another content of one shard's file."""

    def edit(bench, index):
        import pyarrow.parquet as pq

        paths = sorted(bench.shards.glob("*.parquet"))
        change(paths, pq)
        return {}

    return edit


def _other_text(paths, pq):
    table = pq.read_table(paths[2])
    texts = table["text"].to_pylist()
    texts[5] += "!"
    pq.write_table(
        table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), [texts]),
        paths[2],
    )


def _repeated_id(paths, pq):
    first, table = pq.read_table(paths[0]), pq.read_table(paths[2])
    ids = table["id"].to_pylist()
    ids[5] = first["id"][0].as_py()
    pq.write_table(
        table.set_column(table.schema.get_field_index("id"), table.schema.field("id"), [ids]),
        paths[2],
    )


def _swapped(paths, pq):
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)


EDITS = {
    "precision": (_settings(precision=Precision.BF16), "precision (fp32 -> bf16)"),
    "max length": (_settings(max_length=64), "max length (512 -> 64)"),
    "query instruction": (_settings(query_instruction="q: "), "query instruction"),
    "codec": (_in_manifest("codec", "svd-128-0"), "codec (svd-128-0 -> full)"),
    "schema": (_in_manifest("schema", 0), "schema (0 -> 1)"),
    "Lance version": (_in_manifest("lance", "2.2"), "lance (2.2 -> 2.0)"),
    "weights": (_flip("model.safetensors"), "model id"),
    "sparse head": (_flip("sparse_linear.pt"), "model id"),
    "ColBERT head": (_flip("colbert_linear.pt"), "model id"),
    "tokenizer": (_other_score, "model id"),
    "tokenizer settings": (_in_json("tokenizer_config.json", model_max_length=4096), "model id"),
    "special tokens": (_in_json("special_tokens_map.json", sep_token="<s>"), "model id"),
    "model settings": (_in_json("config.json", layer_norm_eps=1e-6), "model id"),
    "shard bytes": (_with_table(_other_text), "1 shards new, 1 gone"),
    "a repeated id": (_with_table(_repeated_id), "1 shards new, 1 gone"),
    "a shard gone": (_with_table(lambda paths, pq: paths[3].unlink()), "0 shards new, 1 gone"),
    "a shard twice": (_with_table(lambda paths, pq: shutil.copy(paths[3], paths[3].with_name("z.parquet"))), "1 shards new"),
    "order of shards": (_with_table(_swapped), "input (order or duplicates)"),
}  # fmt: skip


def never_mixed(seed: int, count: int, folder: Path) -> Outcome:
    """An unfinished build, one edit, the same command: another generation, which names the edit and
    holds no old row.
    """
    outcome = Outcome()
    names = (
        list(EDITS) if count >= len(EDITS) else chance_of(seed, "edits").sample(list(EDITS), count)
    )
    if chosen := os.environ.get("CHAOS_NAMES"):
        names = chosen.split(",")
    with one_ray():
        base = folder / "base"
        base.mkdir()
        bench = make_workbench(base, shard_rows=SHARD_ROWS)
        _leave_unfinished(bench, base / "index")
        for name in names:
            _edit(outcome, base, folder / re.sub(r"\W", "", name), name)
        if count >= len(EDITS):
            _edits_under_way(outcome, base, folder)
    return outcome


def _leave_unfinished(bench, index):
    stop = Failpoint("build.encoded", action="error")
    try:
        build(light_config(bench.shards, index, bench.model, failpoints=(stop,)))
    except DanbooruIndexError:
        return
    raise RuntimeError("the build was not stopped")


def _edit(outcome, base, place, name):
    shutil.copytree(base, place)
    bench, index = (
        type("Bench", (), {"shards": place / "shards", "model": place / "model"}),
        place / "index",
    )
    edit, words = EDITS[name]
    options = edit(bench, index)
    old = IndexRoot(index).generations()[-1]
    report = build(light_config(bench.shards, index, bench.model, **options))
    outcome.add("edits")
    said_it = any(words in note for note in report.notes)
    outcome.add("detected and named", said_it)
    outcome.expect(said_it, f"{name}: {report.notes}")
    outcome.expect(report.generation != old.id, f"{name}: went on with {old.id}")
    outcome.expect(
        report.shards.skipped == 0, f"{name}: {report.shards.skipped} shards were taken over"
    )
    outcome.problems += [f"{name}: {problem}" for problem in verify(str(index)).problems]
    manifest = IndexRoot(index).current().manifest
    shards = {row["shard"] for row in contents(index)["dense"]}
    outcome.expect(shards <= set(manifest.shards), f"{name}: rows of other shards")


def _edits_under_way(outcome, base, folder):
    """Edits while a build runs, after its driver has looked: a model file, a shard; and a
    stranger's completion record.
    """
    for name, word in (
        ("model", "is not the model this build began with"),
        ("shard", "changed since the build began"),
    ):
        place = folder / f"while-{name}"
        shutil.copytree(base, place)
        shutil.rmtree(place / "index")
        target = (
            place / "model/sparse_linear.pt"
            if name == "model"
            else sorted((place / "shards").glob("*.parquet"))[4]
        )
        pause = Failpoint("generation.started", action="pause")
        editor = threading.Thread(target=_append_when_begun, args=(place / "index", target))
        editor.start()
        try:
            build(
                light_config(
                    place / "shards", place / "index", place / "model", failpoints=(pause,)
                )
            )
            outcome.problems.append(f"a {name} changed under way: not noticed")
        except DanbooruIndexError as error:
            outcome.add("detected and named", word in str(error))
            outcome.expect(word in str(error), f"a {name} changed under way: {error}")
        editor.join()
        outcome.add("edits")
    place = folder / "foreign"
    shutil.copytree(base, place)
    generation = IndexRoot(place / "index").generations()[-1]
    shard = generation.manifest.shards[2]
    record, _ = read_record(generation.path, shard)
    record.fingerprint = "0" * 32
    record_path(generation.path, shard).local_path().write_bytes(
        CompletionRecord(**_fields(record)).to_bytes()
    )
    report = build(light_config(place / "shards", place / "index", place / "model"))
    outcome.add("edits")
    set_aside = Path(record_path(generation.path, shard)).with_name(f"{shard}.json.bad-1").exists()
    outcome.add("detected and named", set_aside)
    outcome.expect(
        set_aside and report.shards.done == 1,
        "a completion record of another fingerprint was believed",
    )
    other = make_other_model(base / "model", folder / "other")
    try:
        with TagIndex.open(place / "index", model=str(other)) as tags:
            tags.search("x")
        outcome.problems.append("a query with another model was answered")
    except DanbooruIndexError as error:
        outcome.add("edits")
        outcome.add("detected and named", "another model" in str(error))


def _fields(record):
    return {name: getattr(record, name) for name in record.__slots__}


def make_other_model(model, place):
    shutil.copytree(model, place)
    _flip("model.safetensors")(type("Bench", (), {"model": place}), None)
    return place


def _append_when_begun(index, target):
    while not list(index.glob("generations/*/manifest.json")):
        time.sleep(0.01)
    time.sleep(PAUSE_S / 4)
    with target.open("ab") as file:
        file.write(b"\0")


# ---- clean vectors ----


class NonFinite:
    """The real encoder, whose low-precision pass spoils chosen texts; for some of them fp32 does
    not help either.
    """

    def __init__(self, spoiled, hopeless):
        self._spoiled, self._hopeless = spoiled, hopeless

    def __call__(self, settings):
        encoder = load_encoder(settings)
        forward, spoiled, hopeless = PackedModel.__call__, self._spoiled, self._hopeless

        def spoiling(self, call):
            dense, sorted_ids, weights, colbert, finite = forward(self, call)
            at = 0
            for row, (begin, length) in enumerate(
                zip(call.starts.tolist(), call.lengths.tolist(), strict=True)
            ):
                tokens = call.ids[begin : begin + length].tolist()
                if tuple(tokens) in (
                    spoiled | hopeless if self is encoder._run.forward else hopeless
                ):
                    kind = sum(tokens) % 3
                    dense[row] = float("nan") if kind == 0 else dense[row]
                    colbert[at - row, 0] = float("inf") if kind == 1 else colbert[at - row, 0]
                    weights[at] = float("-inf") if kind == 2 else weights[at]
                    finite[row] = False
                at += length
            return dense, sorted_ids, weights, colbert, finite

        PackedModel.__call__ = spoiling
        return encoder


def clean_vectors(seed: int, count: int, folder: Path) -> Outcome:
    """NaN and Inf in each of the outputs of chosen records: recomputed in fp32, or rejected by
    name; none in a table.
    """
    outcome = Outcome()
    bench = make_workbench(folder, shard_rows=SHARD_ROWS)
    records = [
        json.loads(line)
        for line in (folder / "tags.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    chosen = chance_of(seed, "clean").sample(records, 2 * count)
    tokenizer = Tokenizer(str(bench.model), 512)
    rows = [tuple(tokenizer([record["text"]]).token_ids.tolist()) for record in chosen]
    spoil = NonFinite(frozenset(rows[:count]), frozenset(rows[count:]))
    with one_ray():
        build(light_config(bench.shards, folder / "clean", bench.model, encoder=Made(load_encoder)))
        report = build(
            light_config(bench.shards, folder / "index", bench.model, encoder=Made(spoil))
        )
    lost = {record["id"] for record in chosen[count:]}
    expected, found = contents(folder / "clean")["dense"], contents(folder / "index")["dense"]
    outcome.expect(report.rejected == {"non_finite_output": count}, f"rejected: {report.rejected}")
    outcome.expect(
        [r["id"] for r in found] == [r["id"] for r in expected if r["id"] not in lost],
        "other records",
    )
    named = [
        json.loads(line)["detail"] for line in Path(report.rejects_file).read_text().splitlines()
    ]
    outcome.expect({f"id {record}" for record in lost} == set(named), "the rejected are not named")
    by_id = {row["id"]: row["vector"] for row in expected}
    far = [r["id"] for r in found if np.abs(np.subtract(r["vector"], by_id[r["id"]])).max() > 2e-3]
    outcome.expect(not far, f"{len(far)} recomputed vectors differ")
    path = IndexRoot(folder / "index").current().path
    for name, column in (("dense", "vector"), ("sparse", "weights"), ("colbert", "vectors")):
        values = lance.dataset(str(path / f"{name}.lance")).to_table()[column].combine_chunks()
        while hasattr(values, "flatten") and "list" in str(values.type):
            values = values.flatten()
        bad = int((~np.isfinite(values.to_numpy(zero_copy_only=False))).sum())
        outcome.add("non-finite values in tables", bad)
        outcome.expect(not bad, f"{bad} non-finite values in {name}")
    outcome.problems += verify(str(folder / "index")).problems
    outcome.add("records recomputed", count)
    outcome.add("records rejected by name", count)
    return outcome


# ---- bounded failure ----

FAULTS = {
    "device": (
        f"actor died 2 times, the last time on {os.uname().nodename}: CUDA error: an illegal memory"
        " access"
    ),
    "memory": "out of memory",
    "kill": "actor died",
    "hang": "actor died",
}


def bounded(seed: int, count: int, folder: Path) -> Outcome:
    """One shard that runs out of memory at any size, loses its device, kills its actor, or hangs:
    bounded, named.
    """
    outcome = Outcome()
    bench = make_workbench(folder, shard_rows=SHARD_ROWS)
    tokenizer = Tokenizer(str(bench.model), 512)
    with one_ray():
        build(light_config(bench.shards, folder / "undisturbed", bench.model))
        expected = contents(folder / "undisturbed")
        manifest = IndexRoot(folder / "undisturbed").current().manifest
        faults = (
            list(FAULTS)
            if count >= len(FAULTS)
            else chance_of(seed, "bounded").sample(list(FAULTS), count)
        )
        for fault in faults:
            place = chance_of(seed, "bounded", fault).randrange(468)
            shard, text = expected["dense"][place]["shard"], expected["dense"][place]["text"]
            needle = tuple(tokenizer([text]).token_ids.tolist())
            index = folder / fault
            began = time.monotonic()
            try:
                encoder = Light(fault=fault, needle=needle)
                build(
                    light_config(
                        bench.shards, index, bench.model, encoder=encoder, tuning=Tuning(hang_s=2.0)
                    )
                )
                outcome.problems.append(f"{fault}: published all the same")
            except BuildFailedError as error:
                named = f"1 of {len(manifest.shards)} shards failed" in str(error) and shard in str(
                    error
                )
                outcome.expect(named and FAULTS[fault] in str(error), f"{fault}: {error}")
            outcome.add("faults")
            outcome.add(f"seconds with {fault}", round(time.monotonic() - began, 1))
            outcome.expect(
                time.monotonic() - began < 120, f"{fault}: it took {time.monotonic() - began:.0f} s"
            )
            report = build(light_config(bench.shards, index, bench.model))
            outcome.expect(
                report.shards.skipped == len(manifest.shards) - 1, f"{fault}: the rest was not done"
            )
            outcome.problems += [f"{fault}: {problem}" for problem in compare(index, expected)]
    return outcome


# ---- clean stop ----


def stops(seed: int, count: int, folder: Path) -> Outcome:
    """SIGTERM, Ctrl-C and `ray job stop` at random moments of the real command: out within 5 s, and
    resumable.
    """
    outcome = Outcome()
    bench = make_workbench(folder)
    index = bench.index("index")
    command = [
        sys.executable,
        "-m",
        "danbooru_index.cli",
        "build",
        bench.shards,
        "--index",
        index,
        "--model",
        bench.model,
    ]
    command += ["--device", "cpu", "--precision", "fp32"]
    slowest, longest = 0.0, 12.0
    submitted = count // 5
    for number in range(count - submitted):
        chance = chance_of(seed, "stops", number)
        process = start(command)
        after = chance.uniform(0.3, longest)
        time.sleep(after)
        if process.poll() is not None:
            outcome.add("had ended before")
            shutil.rmtree(index)
            continue
        sent = signal.SIGTERM if number % 2 else signal.SIGINT
        began = time.monotonic()
        kill(process.pid, sent)
        code = finish(process, 60)
        took = time.monotonic() - began
        slowest = max(slowest, took)
        outcome.expect(
            took < 7, f"stop {number} after {after:.1f} s took {took:.1f} s: {said(process)[-300:]}"
        )
        words = said(process)
        outcome.add(signal.Signals(sent).name)
        if code == -signal.SIGABRT and words.startswith("*** SIGTERM received"):
            # For a moment while it starts, Ray's own handler stands in place of this command's.
            outcome.add("ended by Ray itself while it started")
            continue
        line = words.splitlines()[-1] if words else ""
        clean = "Traceback" not in words and line.startswith("danbooru-index: ") and code in (0, 1)
        outcome.expect(
            clean or code == 0,
            f"stop {number} ({signal.Signals(sent).name}): {code}: {words[-500:]}",
        )
        outcome.add("that had just published", code == 0)
        end_descendants()
    if submitted:
        slowest = max(slowest, _stop_jobs(outcome, seed, submitted, command[3:]))
    outcome.add("slowest exit (s)", round(slowest, 1))
    straight = bench.index("straight")
    for target in (index, straight):
        last = start([str(target) if word == index else word for word in command])
        outcome.expect(finish(last) == 0, f"does not go on: {said(last)[-300:]}")
    outcome.problems += compare(index, contents(straight))
    return outcome


def _stop_jobs(outcome, seed, count, command):
    """`ray job stop` of submitted jobs; returns the slowest, in seconds."""
    slowest = 0.0
    ray = [Path(sys.executable).parent / "ray", "job"]
    with head_node(dashboard=True) as address:
        url = os.environ["RAY_DASHBOARD"]
        for number in range(count):
            words = [str(word) for word in [sys.executable, "-m", "danbooru_index.cli", *command]]
            subprocess.run(
                [*ray, "submit", "--address", url, "--no-wait", "--submission-id", f"s{number}", "--", *words],
                capture_output=True, check=True,
            )  # fmt: skip
            time.sleep(chance_of(seed, "job-stops", number).uniform(3.0, 14.0))
            began = time.monotonic()
            subprocess.run(
                [*ray, "stop", "--address", url, f"s{number}"], capture_output=True, check=False
            )
            while any("danbooru_index.cli" in " ".join(_command_line(p)) for p in descendants()):
                time.sleep(0.05)
                if time.monotonic() - began > 60:
                    outcome.problems.append(f"job {number} does not stop at {address}")
                    break
            took = time.monotonic() - began
            slowest = max(slowest, took)
            outcome.expect(took < 7, f"job {number} took {took:.1f} s to stop")
            outcome.add("ray job stop")
    return slowest


def _command_line(process):
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []
