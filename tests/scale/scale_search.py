"""How long a hybrid query takes over 1,386,373 rows at BGE-M3's full width, ColBERT matrices
included: about 36 GB of disk.

    python tests/scale/scale_search.py FOLDER [ROWS]

Random vectors through the product's own writer, commit and reader; no model is needed, since only
the search is timed. Prints one JSON document.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from vault import committed, manifest

from danbooru_index.choices import Mode
from danbooru_index.embeddings import Embeddings
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.commit import commit
from danbooru_index.index.completion import CompletionRecord, complete
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.shards import RECORD_SCHEMA
from danbooru_index.search.hybrid import rank
from danbooru_index.search.retriever import EncodedQuery

DIM, SHARD, TOKENS = 1024, 4096, 250_002


def encoding(count, chance, pool):
    lengths = np.clip(chance.poisson(10.7, count), 2, 60)
    sparse = np.clip(lengths - 1, 1, None)
    ids = chance.zipf(1.3, int(sparse.sum())) % TOKENS
    return Embeddings(
        dense=pool[chance.integers(0, len(pool), count)],
        sparse_ids=ids.astype(np.int32),
        sparse_weights=chance.random(int(sparse.sum()), dtype=np.float32),
        sparse_lengths=sparse,
        colbert=pool[chance.integers(0, len(pool), int(lengths.sum()))],
        colbert_lengths=lengths,
        non_finite=np.empty(0, np.int64),
    )


def records(start, count):
    names = [str(start + n) for n in range(count)]
    text = [f"【通用】tag_{name}" for name in names]
    columns = [
        names,
        text,
        names,
        ["通用"] * count,
        [""] * count,
        ["danbooru"] * count,
        range(count),
        [[]] * count,
    ]
    flags = [[n % 20 == 0 for n in range(count)], [False] * count]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip([*columns, *flags], RECORD_SCHEMA, strict=True)],
        schema=RECORD_SCHEMA,
    )


def write(root, rows):
    chance = np.random.default_rng(0)
    pool = chance.normal(size=(65_536, DIM)).astype(np.float32)
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float16)
    specs = table_specs(DIM, DIM)
    starts = range(0, rows, SHARD)
    generation = root.start(
        manifest([f"s{start:08d}" for start in starts], dim=DIM, colbert_dim=DIM)
    )
    done = []
    for start in starts:
        count = min(SHARD, rows - start)
        writer = ShardWriter(generation.path, f"s{start:08d}", specs)
        writer.write(records(start, count), encoding(count, chance, pool))
        record = CompletionRecord(
            f"s{start:08d}", "x", writer.attempt, count, count, writer.finish()
        )
        complete(generation.path, record)
        done.append(record)
    return committed(generation, commit(generation.path, specs, done))


def main():
    parser = argparse.ArgumentParser(description="A hybrid query over many rows: 36 GB of disk.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=int, nargs="?", default=1_386_373)
    given = parser.parse_args()
    folder, rows = given.folder, given.rows
    root = IndexRoot(folder)
    root.create()
    started = time.monotonic()
    generation = write(root, rows)
    result = {"rows": rows, "written_in_s": round(time.monotonic() - started, 1)}
    chance = np.random.default_rng(1)
    reader = GenerationReader(generation)
    times = {"hybrid": [], "dense": [], "sparse": []}
    for number in range(9):
        made = encoding(1, chance, np.eye(DIM, dtype=np.float16)[:512] + np.float16(0.01))
        query = EncodedQuery(
            made.dense[0].astype(np.float32), made.sparse_row(0), made.colbert.astype(np.float32)
        )
        for mode in times:
            at = time.monotonic()
            found = rank(reader, query, Mode(mode), 10)
            times[mode].append(time.monotonic() - at)
            assert len(found.rows) == 10 or mode == "sparse"
        if number == 0:
            result["first_query_s"] = round(sum(t[0] for t in times.values()), 2)
    for mode, seconds in times.items():
        rest = sorted(seconds[1:])
        result[f"{mode}_s"] = {
            "median": round(rest[len(rest) // 2], 3),
            "slowest": round(rest[-1], 3),
        }
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    print(json.dumps(result))


if __name__ == "__main__":
    main()
