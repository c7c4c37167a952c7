"""Chooses what names and posts count beside the M3 score, on queries that no name answers.

    python tests/scale/fusion.py INDEX ../shared/data [--own 2000]

INDEX: of `danbooru_tags.jsonl.gz`. Development queries that are a name or an alias are left out:
they stand first whatever the weights. Beside them stands a split of `names_ja.jsonl.gz` whose names
are in no text, those of characters and works apart, since m3-mini has been trained on these names.
Prints Recall@10 and mAP@10 of every pair of weights, then the chosen pair against each of its parts
alone, with 95% intervals of the differences.
"""

import argparse
import gzip
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.evaluation.metrics import interval, per_query
from danbooru_index.evaluation.queries import Query, read_queries
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.batch import rank_hybrids
from danbooru_index.search.hybrid import M3_ALONE
from danbooru_index.search.lexical import LexicalRetriever
from danbooru_index.search.query_encoder import QueryEncoder

TRANSLITERATION, POPULARITY = (0.0, 0.2, 0.3, 0.4, 0.5), (0.0, 0.01, 0.02, 0.03)
NAMES = {"角色", "作品", "画师"}
MEASURES = ("R@10", "AP@10")


def own_split(data, reader, count):
    """Japanese names that no text holds: those of characters, works and artists, and the others."""
    rows = {tag: row for row, tag in enumerate(reader.tags())}
    texts = reader.texts()
    tags = {}
    with gzip.open(data / "names_ja.jsonl.gz", "rt", encoding="utf-8") as lines:
        for item in map(json.loads, lines):
            if not item["ja"].isascii() and item["tag"] in rows:
                tags.setdefault(item["ja"], []).append(item["tag"])
    names = sorted(n for n, some in tags.items() if not any(n in texts[rows[t]] for t in some))
    random.Random(7).shuffle(names)
    files = reader.files
    category = [files.category_names[place] for place in files.categories.tolist()]
    for name in names[:count]:
        proper = any(category[rows[tag]] in NAMES for tag in tags[name])
        yield Query(name, tuple(tags[name]), "own, proper" if proper else "own, general")


def main():
    parser = argparse.ArgumentParser(description="Chooses the weights of names and posts.")
    parser.add_argument("index")
    parser.add_argument("data", type=Path)
    parser.add_argument("--own", type=int, default=2000)
    given = parser.parse_args()
    generation = IndexRoot(given.index).current()
    reader, encode = GenerationReader(generation), QueryEncoder(generation)
    lexical, every = LexicalRetriever(reader.files), np.ones(reader.rows, dtype=bool)
    asked = [
        *read_queries(str(given.data / "queries_dev.jsonl")),
        *own_split(given.data, reader, given.own),
        *read_queries(str(given.data / "phrases_dev.jsonl")),
    ]
    queries = [query for query in asked if not lexical.named(query.text, 1, every)]
    print(f"{len(queries):,} of {len(asked):,} queries are no name of any tag")
    kinds = np.array(["phrases" if q.kind.endswith("_user") else q.kind for q in queries])
    encoded = [
        one
        for start in range(0, len(queries), 512)
        for one in encode([query.text for query in queries[start : start + 512]])
    ]
    pairs = list(itertools.product(TRANSLITERATION, POPULARITY))
    fusions = [replace(Fusion(), transliteration=t, popularity=p) for t, p in pairs]
    fusions.append(M3_ALONE)
    weightings = [(Weights(), fusion) for fusion in fusions]
    tags = reader.tags()
    found = rank_hybrids(reader, encoded, 100, weightings, Filter(nsfw=True))
    values = [
        per_query(queries, [[tags[row] for row in rows.tolist()] for rows in run]) for run in found
    ]
    groups = sorted({*kinds.tolist()} - {"alias"})
    print("transliteration, popularity: Recall@10 / mAP@10 of " + ", ".join(groups))
    for pair, scored in zip([*pairs, "M3 alone"], values, strict=True):
        cells = [
            " / ".join(f"{scored[m][kinds == group].mean():.3f}" for m in MEASURES)
            for group in groups
        ]
        print(f"{pair!s:>12}  " + "  ".join(cells), flush=True)
    default = Fusion()
    chosen = pairs.index((default.transliteration, default.popularity))
    for name, other in (
        ("M3 alone", len(pairs)),
        ("no transliteration", pairs.index((0.0, default.popularity))),
        ("no popularity", pairs.index((default.transliteration, 0.0))),
    ):
        for measure in MEASURES:
            cells = []
            for group in groups:
                gained = (values[chosen][measure] - values[other][measure])[kinds == group]
                mean, low, high = interval(gained)
                cells.append(f"{group} {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
            print(f"chosen against {name}, {measure}: " + "; ".join(cells))


if __name__ == "__main__":
    main()
