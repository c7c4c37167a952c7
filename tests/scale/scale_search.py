"""How long searches of a large index take, and how much they find, beside what a user would pick
instead.

    python tests/scale/scale_search.py INDEX --queries QUERIES.jsonl [--rivals FOLDER]
    python tests/scale/scale_search.py FOLDER --make ROWS [--dim 1024] [--colbert-dim 128]

The first asks an index that `build` made, with real queries. The second writes an index of random
vectors first, through the product's own writer, commit and publish: for latencies alone. Encoding a
query is not counted. Prints one JSON document; milliseconds are medians and 95th percentiles.
"""

import argparse
import contextlib
import itertools
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from vault import manifest

from danbooru_index.choices import Mode
from danbooru_index.config import Filter
from danbooru_index.embeddings import Embeddings
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import CompletionRecord, complete
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.inverted import flat_weights
from danbooru_index.index.lifecycle import seal_and_publish
from danbooru_index.index.manifest import Checks
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import table_specs
from danbooru_index.ingest.shards import RECORD_SCHEMA
from danbooru_index.search.batch import dense_tops, rank_many
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.filters import allowed
from danbooru_index.search.hybrid import rank
from danbooru_index.search.retriever import Allowed, query_of

SHARD, TOKENS = 4096, 250_002
QUERIES, COLBERT_QUERIES, EXACT_COLBERT = 200, 60, 40
BEST = 200  # sparse candidates
SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
MODES = (Mode.DENSE, Mode.SPARSE, Mode.LEXICAL, Mode.HYBRID, Mode.COLBERT)
EVERYTHING = Filter(nsfw=True)


# ---- an index of random vectors ----


def encoding(count, chance, dense, colbert):
    lengths = np.clip(chance.poisson(10.7, count), 2, 60)
    sparse = np.clip(lengths - 1, 1, None)
    ids = chance.zipf(1.3, int(sparse.sum())) % TOKENS
    return Embeddings(
        dense=dense[chance.integers(0, len(dense), count)],
        sparse_ids=ids.astype(np.int32),
        sparse_weights=chance.random(int(sparse.sum()), dtype=np.float32),
        sparse_lengths=sparse,
        colbert=colbert[chance.integers(0, len(colbert), int(lengths.sum()))],
        colbert_lengths=lengths,
        non_finite=np.empty(0, np.int64),
    )


def random_units(chance, dim):
    pool = chance.normal(size=(65_536, dim)).astype(np.float32)
    return (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float16)


def records(start, count):
    names = [str(start + n) for n in range(count)]
    text = [f"【通用】tag_{name}" for name in names]
    tags = [f"tag_{name}" for name in names]
    columns = [names, text, tags, ["通用"] * count, [""] * count, ["danbooru"] * count]
    columns += [range(start, start + count), [[]] * count]
    flags = [[n % 20 == 0 for n in range(count)], [False] * count]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip([*columns, *flags], RECORD_SCHEMA, strict=True)],
        schema=RECORD_SCHEMA,
    )


def make(folder, rows, dim, colbert_dim):
    chance = np.random.default_rng(0)
    dense, colbert = random_units(chance, dim), random_units(chance, colbert_dim)
    root = IndexRoot(folder)
    root.create()
    starts = range(0, rows, SHARD)
    shards = [f"s{start:08d}" for start in starts]
    generation = root.start(manifest(shards, dim=dim, colbert_dim=colbert_dim))
    done = []
    for shard, start in zip(shards, starts, strict=True):
        count = min(SHARD, rows - start)
        writer = ShardWriter(generation.path, shard, table_specs(dim, colbert_dim))
        writer.write(records(start, count), encoding(count, chance, dense, colbert))
        digest, parts = generation.manifest.fingerprint_digest, writer.finish()
        done.append(CompletionRecord(shard, digest, writer.attempt, count, count, parts))
        complete(generation.path, done[-1])
    seal_and_publish(root, generation, done, [], lambda *_: Checks())


def random_queries(reader):
    chance = np.random.default_rng(1)
    dense = random_units(chance, reader.manifest.dim)
    made = encoding(QUERIES, chance, dense, random_units(chance, reader.manifest.colbert_dim))
    return [query_of(made, n, f"tag {n * 991}") for n in range(QUERIES)]


# ---- measuring ----


def timed(ask, queries):
    """Median and 95th percentile, in milliseconds; the first queries warm caches up."""
    for query in queries[:5]:
        ask(query)
    seconds = []
    for query in queries:
        started = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - started)
    return [round(1000 * float(np.percentile(seconds, p)), 1) for p in (50, 95)]


def latencies(reader, queries, filters):
    found = {}
    for name, wanted in filters.items():
        found[name] = {"share": round(allowed(reader.files, wanted).count / reader.rows, 4)}
        for mode in MODES:
            some = queries[:COLBERT_QUERIES] if mode is Mode.COLBERT else queries
            found[name][mode.value] = timed(
                lambda q, m=mode, w=wanted: rank(reader, q, m, 10, wanted=w), some
            )
    return found


def recall(found, exact):
    hits = [len(set(map(int, a)) & set(map(int, b))) for a, b in zip(found, exact, strict=True)]
    return round(sum(hits) / sum(len(b) for b in exact), 4)


def dense_recall(reader, queries):
    """Recall@10 by share of rows that a random filter lets through, with the milliseconds."""
    retriever, chance = DenseRetriever(reader), np.random.default_rng(2)
    told = {}
    for share in (1.0, *SHARES):
        among = Allowed(chance.random(reader.rows) < share, EVERYTHING)
        exact = [rows for rows, _ in dense_tops(reader, queries, 10, among)]
        found = [retriever.candidates(query, 10, among)[0] for query in queries]
        ms = timed(lambda q, a=among: retriever.candidates(q, 10, a), queries)
        told[f"{share:.2%}"] = {"recall": recall(found, exact), "ms": ms}
    return told


def queries_a_second(reader, queries):
    """Hybrid queries a second by so many threads, from memory that is warm."""
    told = {}
    for threads in (1, 2, 8):
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            list(pool.map(lambda q: rank(reader, q, Mode.HYBRID, 10), queries * 2))
            told[threads] = round(2 * len(queries) / (time.perf_counter() - started), 1)
    return told


def own_megabytes():
    """Memory of this process alone: mapped files apart."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) // 1024


# ---- what a user would pick instead ----


def rival_table(reader, vectors, folder):
    """The rows as a LanceDB table with its own two indices; made once."""
    import lancedb
    from lancedb.index import FTS, IvfRq

    database = lancedb.connect(str(folder))
    if "rival" in database.table_names():
        return database.open_table("rival")
    flat = pa.array(vectors.astype(np.float16).ravel())
    columns = {
        "row": pa.array(range(reader.rows), pa.int64()),
        "text": pa.array(reader.texts()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    table = database.create_table("rival", pa.table(columns))
    parts = max(1, reader.rows // 4096)
    table.create_index("vector", config=IvfRq(distance_type="cosine", num_partitions=parts))
    table.create_index("text", config=FTS())
    return table


def rivals(reader, queries, folder):
    """LanceDB's own vector, and vector + full-text search; NumPy over all vectors in memory."""
    queries = queries[:60]
    vectors = np.concatenate(list(reader.dense_blocks()))
    exact = [np.argsort(-(vectors @ q.dense.astype(np.float32)))[:10] for q in queries]

    def numpy_search(query):
        scores = vectors @ query.dense.astype(np.float32)
        best = np.argpartition(-scores, 10)[:10]
        return best[np.argsort(-scores[best])]

    told = {"numpy dense": {"recall": 1.0, "ms": timed(numpy_search, queries)}}
    table = rival_table(reader, vectors, folder)

    def nearest(query, probes):
        asked = table.search(query.dense.astype(np.float16), vector_column_name="vector")
        asked = asked.distance_type("cosine").nprobes(probes).refine_factor(10).limit(10)
        return [row["row"] for row in asked.select(["row"]).to_list()]

    for probes in (20, 80, reader.rows // 4096):
        found = [nearest(query, probes) for query in queries]
        ms = timed(lambda q, p=probes: nearest(q, p), queries)
        told[f"lancedb dense, {probes} probes"] = {"recall": recall(found, exact), "ms": ms}

    def hybrid(query):
        asked = table.search(query_type="hybrid", vector_column_name="vector", fts_columns="text")
        asked = asked.vector(query.dense.astype(np.float32)).text(query.text)
        return asked.distance_type("cosine").nprobes(80).refine_factor(10).limit(10).to_list()

    told["lancedb vector + text"] = {"ms": timed(hybrid, queries)}
    return told


def sparse_rivals(reader, queries, folder):
    """The best 200 rows by sparse weights: this project's inverted index, SciPy's columns, and
    impact-index's exact MaxScore (GPL-3: `pip install impact-index`, a rival, no dependency).
    """
    from scipy.sparse import csc_matrix

    batches = list(reader.sparse_batches())
    tokens, weights, lengths = flat_weights(batches)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    rows = np.repeat(np.arange(reader.rows), lengths)
    columns = csc_matrix((weights, (rows, tokens)), shape=(reader.rows, TOKENS))
    everything = np.ones(reader.rows, bool)

    def ours(query):
        return reader.inverted.top(query.sparse, BEST, everything)[1]

    def scipy_columns(query):
        found = list(query.sparse)
        scores = columns[:, found] @ np.array([query.sparse[t] for t in found], np.float32)
        return -np.sort(-scores[np.argpartition(-scores, BEST)[:BEST]])

    asked = {"inverted index": ours, "scipy": scipy_columns}
    with contextlib.suppress(ImportError):
        import impact_index

        builder = impact_index.IndexBuilder(str(folder / "impact"))
        for row, (at, end) in enumerate(itertools.pairwise(bounds.tolist())):
            builder.add(row, tokens[at:end].astype(np.uintp), weights[at:end])
        impacts = builder.build(in_memory=True)
        asked["impact-index"] = lambda query: np.array(
            [one.score for one in impacts.search_maxscore(query.sparse, BEST)], np.float32
        )
    best = {name: [ask(query) for query in queries[:20]] for name, ask in asked.items()}
    for name, scores in best.items():  # rows of one score may change places
        for theirs, exact in zip(scores, best["inverted index"], strict=True):
            np.testing.assert_allclose(theirs[: len(exact)], exact, rtol=1e-4, err_msg=name)
    return {f"sparse, {name}": {"ms": timed(ask, queries)} for name, ask in asked.items()}


def encoded(generation, path):
    """The queries of a file, by the model that built the index."""
    from danbooru_index.search.query_encoder import QueryEncoder

    texts = [json.loads(line)["query"] for line in path.read_text(encoding="utf-8").splitlines()]
    np.random.default_rng(0).shuffle(texts)
    return QueryEncoder(generation)(texts[:QUERIES])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--rivals", type=Path, metavar="FOLDER")
    parser.add_argument("--make", type=int, metavar="ROWS")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--colbert-dim", type=int, default=128)
    given = parser.parse_args()
    result = {}
    if given.make:
        started = time.monotonic()
        make(given.index, given.make, given.dim, given.colbert_dim)
        result["written_in_s"] = round(time.monotonic() - started, 1)
    generation = IndexRoot(given.index).current()
    queries = encoded(generation, given.queries) if given.queries else None
    started = time.perf_counter()
    reader = GenerationReader(generation)
    queries = queries or random_queries(reader)
    rank(reader, queries[0], Mode.HYBRID, 10)
    result |= {"rows": reader.rows, "opened_in_s": round(time.perf_counter() - started, 2)}
    categories = reader.files.categories
    largest = reader.files.category_names[int(np.bincount(categories).argmax())]
    filters = {
        "none": EVERYTHING,
        "safe": Filter(),
        "largest category": Filter((largest,), nsfw=True),
        "100,000 posts": Filter(min_post_count=100_000, nsfw=True),
    }
    result["ms"] = latencies(reader, queries, filters)
    result["anonymous_mb"] = own_megabytes()
    result["queries_a_second"] = queries_a_second(reader, queries)
    if given.queries:
        result["dense"] = dense_recall(reader, queries)
        some = queries[:EXACT_COLBERT]
        exact = rank_many(reader, some, Mode.COLBERT, 10, wanted=EVERYTHING)
        found = [rank(reader, q, Mode.COLBERT, 10, wanted=EVERYTHING).rows for q in some]
        result["colbert_recall"] = recall(found, exact)
    print(json.dumps(result), flush=True)
    if given.rivals:
        print(json.dumps(sparse_rivals(reader, queries, given.rivals)), flush=True)
        print(json.dumps(rivals(reader, queries, given.rivals)))


if __name__ == "__main__":
    main()
