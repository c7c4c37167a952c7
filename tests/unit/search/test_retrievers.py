"""Retrievers: exact scores, ties, rows without vectors."""

import numpy as np
from vault import SPECS, committed, make_encoding, make_records, manifest

from danbooru_index.choices import Mode
from danbooru_index.config import Filter
from danbooru_index.index.commit import commit
from danbooru_index.index.completion import CompletionRecord
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.reader import GenerationReader
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.search.filters import allowed
from danbooru_index.search.hybrid import retrievers
from danbooru_index.search.retriever import EncodedQuery


def test_equal_vectors_find_themselves_by_a_tied_score(index):
    from danbooru_index.pipeline.self_check import Sample, self_queries

    generation = index.start(manifest(["a"]))
    count = 120
    encoding = make_encoding(count)
    encoding.dense[:] = encoding.dense[0]
    writer = ShardWriter(generation.path, "a", SPECS)
    records = make_records(count)
    writer.write(records, encoding)
    record = CompletionRecord("a", "f", writer.attempt, count, count, writer.finish())
    generation = committed(generation, commit(generation.path, SPECS, [record]))
    reader = GenerationReader(generation)
    texts = records["text"].to_pylist()
    samples = [Sample(f"r{row}", texts[row], "a") for row in (3, 60, 110)]
    asked = encoding.keep(np.isin(np.arange(count), [3, 60, 110]))
    assert self_queries(reader, samples, asked) == []
    wrong = encoding.keep(np.isin(np.arange(count), [4, 61, 111]))
    assert self_queries(reader, samples, wrong), "another record's vectors are noticed"


def test_retrievers_score_exactly(built):
    """By hand, for every row; candidates are the best of these, and have the same scores."""
    reader = GenerationReader(built)
    encodings = [make_encoding(20, seed) for seed in range(3)]
    asked = make_encoding(3, 9)
    query = EncodedQuery(
        encodings[1].dense[13].astype(np.float32), {0: 0.5, 2: 2.0, 99: 1.0}, asked.colbert
    )
    by_hand = {
        Mode.DENSE: np.concatenate([e.dense for e in encodings]).astype(np.float32) @ query.dense,
        Mode.SPARSE: np.array([
            sum(query.sparse.get(token, 0) * weight for token, weight in e.sparse_row(row).items())
            for e in encodings for row in range(20)
        ]),
        Mode.COLBERT: np.array([
            (asked.colbert.astype(np.float32) @ e.colbert_row(row).astype(np.float32).T).max(1).mean()
            for e in encodings for row in range(20)
        ]),
    }  # fmt: skip
    everything = allowed(reader.files, Filter(nsfw=True))
    for mode, retriever in retrievers(reader).items():
        expected = by_hand[mode]
        assert np.allclose(retriever.score(query, np.arange(60)), expected, atol=1e-3), mode
        assert np.allclose(
            retriever.score(query, np.array([41, 2, 20])), expected[[41, 2, 20]], atol=1e-3
        ), mode
        assert not len(retriever.score(query, np.array([], np.int64)))
        rows, scores = retriever.candidates(query, 5, everything)
        assert np.allclose(scores, retriever.score(query, rows), atol=1e-6), mode
        best = [
            score for score in np.sort(expected)[::-1][:5] if score > 0 or mode is not Mode.SPARSE
        ]
        assert np.allclose(scores, best, atol=2e-3), mode
    assert reader.row_of("c-4") == 44
    assert reader.id_problems() == []


def test_max_sim_of_rows_without_vectors_is_zero():
    rows = as_matrices([np.zeros((0, 2)), np.eye(2), np.zeros((0, 2))])
    assert max_sim(as_matrices([np.array([[1.0, 0.0], [0.0, 0.5]])]), rows).tolist() == [
        [0.0, 0.75, 0.0]
    ]
    assert max_sim(as_matrices([np.zeros((0, 2))]), rows).tolist() == [[0.0, 0.0, 0.0]]
