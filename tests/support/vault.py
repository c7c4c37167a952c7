"""The storage protocol of a build without Ray and without a model: what the campaigns against disks
and locks run.

    python tests/support/vault.py INDEX [--shards 4] [--rows 20] [--model m] [--fragments 3] [--failpoint NAME:ACTION:TOKEN:SKIP]

Everything it calls is the product's, in the product's order; the vectors are random, the same for a
shard and a seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
from checkpoints import SAMPLE
from faults import parse_failpoint

from danbooru_index.embeddings import Embeddings, merge
from danbooru_index.errors import DanbooruIndexError, StorageError
from danbooru_index.failpoints import armed
from danbooru_index.index import compaction, lifecycle
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.checks import verify_table
from danbooru_index.index.commit import commit
from danbooru_index.index.completion import CompletionRecord, complete, read_records
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.lifecycle import open_generation, seal_and_publish
from danbooru_index.index.manifest import Fingerprint, Manifest, ModelRef, Seal
from danbooru_index.index.old_vectors import old_vectors
from danbooru_index.index.publish import prune
from danbooru_index.index.reuse import OldVectorReader
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.fields import parse_line
from danbooru_index.ingest.shards import to_table
from danbooru_index.model.checkpoint import model_id
from danbooru_index.pipeline.self_check import check_tables
from danbooru_index.storage import lease

DIM = 16
SPECS = table_specs(DIM, DIM)


def limited(step, size):
    """A step of the build in which no file may grow beyond so many bytes."""

    def run(*arguments):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            return step(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return run


def make_encoding(count, seed=0):
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, 6, count)
    sparse = chance.integers(0, 4, count)

    def unit(shape):
        vectors = chance.normal(size=shape)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    return Embeddings(
        dense=unit((count, DIM)).astype(np.float16),
        sparse_ids=np.concatenate(
            [np.sort(chance.choice(np.arange(4, 64), n, replace=False)) for n in sparse]
        ).astype(np.int32),
        sparse_weights=chance.random(int(sparse.sum())).astype(np.float32) + 0.1,
        sparse_lengths=sparse,
        colbert=unit((int(lengths.sum()), DIM)).astype(np.float16),
        colbert_lengths=lengths,
        non_finite=np.empty(0, np.int64),
    )


def make_records(count, prefix="r", source="danbooru", categories=None):
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:count]
    changes = [{"id": f"{prefix}{n}", "source": source} for n in range(count)]
    for n, change in enumerate(changes if categories else ()):
        change |= {"category": categories[n % len(categories)], "nsfw": n % 3 == 0}
    return to_table(
        [parse_line(json.dumps(json.loads(a) | b)) for a, b in zip(lines, changes, strict=False)]
    )


def manifest(shards, **changes):
    fingerprint = Fingerprint("m" * 64, "fp32", 512)
    fields = {
        "id": "",
        "fingerprint": fingerprint,
        "fingerprint_digest": fingerprint.digest,
        "model": ModelRef("m", "/m", "m" * 64),
        "dim": DIM,
        "colbert_dim": DIM,
        "input_digest": "i",
        "shards": tuple(shards),
        "input": "in",
    }
    return Manifest(**fields | changes)


def committed(generation, versions, **seal):
    """A generation as it is when its tables are committed; saved nowhere."""
    return replace(
        generation, manifest=replace(generation.manifest, seal=Seal(1.0, versions, 0, **seal))
    )


def write_shard(generation, shard, count=20, seed=0, finish=True, categories=None, prefix=None):
    writer = ShardWriter(generation.path, shard, SPECS)
    records, encoding = (
        make_records(count, prefix or f"{shard}-", categories=categories),
        make_encoding(count, seed),
    )
    writer.write(records.slice(0, 7), encoding.keep(np.arange(count) < 7))
    writer.write(records.slice(7), encoding.keep(np.arange(count) >= 7))
    parts = writer.finish()
    record = CompletionRecord(
        shard, generation.manifest.fingerprint_digest, writer.attempt, count, count, parts
    )
    if finish:
        assert complete(generation.path, record)
    return writer, record, encoding


GRACE_S = 0.0


def dense_rows(index):
    """The rows of the dense table, in order."""
    return (
        lance.dataset(str(IndexRoot(index).current().path.local_path() / "dense.lance"))
        .to_table()
        .to_pylist()
    )


def shard_names(count):
    return [f"shard{number:03d}" for number in range(count)]


def build(
    index, shards, rows=20, model="m", failpoints=(), keep=None, seed=0, path=None, categories=None,
    reuse=False,
):  # fmt: skip
    """Go on with, or begin, a generation of `shards`; returns its id. The steps of
    `pipeline.build`, in their order. `reuse`: with the vectors that the published generation has of
    its texts, whatever that one's model.
    """
    root = IndexRoot(index)
    root.create()
    try:
        with root.path.owned(), armed(tuple(failpoints)):
            return _build_owned(root, shards, rows, model, keep, seed, path, categories, reuse)
    except OSError as error:
        raise StorageError(f"{error.filename or index}: {error.strerror or error}") from None


def _build_owned(root, shards, rows, model, keep, seed, path, categories, reuse):
    fingerprint = Fingerprint(model * 64, "fp32", 512)
    wanted = manifest(
        shards,
        fingerprint=fingerprint,
        fingerprint_digest=fingerprint.digest,
        input_digest=f"{len(shards)}/{seed}",
        model=ModelRef(model, path or f"/{model}", model_id(Path(path)) if path else model * 64),
    )
    opened = open_generation(root, wanted)
    generation = opened.generation
    if opened.finished:
        return generation.id
    done = read_records(generation.path, shards, fingerprint.digest)
    checked = generation.path / "attempts-vault"
    if reuse:
        checked.make_folder()
    old = OldVectorReader(old_vectors(root.current()), checked) if reuse else None
    for number, shard in enumerate(shards):
        if shard not in done:
            encode_shard(
                generation, shard, rows, number + 1000 * (seed or ord(model)), str(seed), categories,
                old,
            )  # fmt: skip
    checked.remove_tree()
    records = read_records(generation.path, shards, fingerprint.digest)
    missing = [shard for shard in shards if shard not in records]
    if missing:
        raise StorageError(f"{len(missing)} shards have no completion record")
    seal_and_publish(root, generation, [records[shard] for shard in shards], [], check_tables)
    if keep:
        prune(root, keep, grace_s=GRACE_S)
    return generation.id


def encode_shard(generation, shard, rows=20, seed=0, source="danbooru", categories=None, old=None):
    """What an actor does with a shard; `old`: reads vectors that may be used again."""
    writer = ShardWriter(generation.path, shard, SPECS)
    records, encoding = (
        make_records(rows, f"{shard}-", source, categories),
        make_encoding(rows, seed),
    )
    if old is not None:
        known = old.known(records["text"].to_pylist())
        encoding = merge(known.mask, known.embeddings, encoding.keep(~known.mask))
    try:
        half = rows // 2
        writer.write(records.slice(0, half), encoding.keep(np.arange(rows) < half))
        writer.write(records.slice(half), encoding.keep(np.arange(rows) >= half))
        parts = writer.finish()
    except BaseException:
        writer.discard()
        raise
    record = CompletionRecord(
        shard, generation.manifest.fingerprint_digest, writer.attempt, rows, rows, parts
    )
    if not complete(generation.path, record):
        writer.discard()


def verify_all(generation, records):
    seal = generation.manifest.seal
    versions = seal.versions if seal else commit(generation.path, SPECS, records)
    return [
        problem
        for spec in SPECS
        for problem in verify_table(generation.path, spec, versions[spec.name], records)
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("index")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--model", default="m")
    parser.add_argument("--keep", type=int)
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument(
        "--fragments", type=int, default=3, help="compact a table of as many small fragments"
    )
    parser.add_argument(
        "--lease", type=float, help="seconds that an owner on an object store holds an index"
    )
    parser.add_argument("--file-limit", type=int, help="no file may grow beyond this many bytes")
    parser.add_argument("--compaction-limit", type=int, help="the same, while tables are compacted")
    parser.add_argument("--wait", help="create this file, and go on when it is gone")
    parser.add_argument("--failpoint", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.wait:
        wait_at(Path(arguments.wait))
    compaction.FRAGMENTS = arguments.fragments
    lease.LEASE_S = arguments.lease or lease.LEASE_S
    if arguments.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.file_limit, arguments.file_limit))
    if arguments.compaction_limit:
        lifecycle.compact = limited(lifecycle.compact, arguments.compaction_limit)
    points = [parse_failpoint(word) for word in arguments.failpoint]
    try:
        names = shard_names(arguments.shards)
        done = build(
            arguments.index, names, arguments.rows, arguments.model, points, arguments.keep,
            reuse=arguments.reuse,
        )  # fmt: skip
    except DanbooruIndexError as error:
        print(f"danbooru-index: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    try:
        print(json.dumps({"generation": done}), flush=True)
    except OSError as error:
        print(f"danbooru-index: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def wait_at(path):
    """Tell the harness that everything is imported, and wait for it."""
    import time

    path.write_text("")
    while path.exists():
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
