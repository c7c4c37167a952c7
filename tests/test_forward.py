"""Packing rows into device calls, and the two operations that know where a row ends; against the plain definitions."""

import itertools

import numpy as np
import pytest
import torch

from danbooru_index.forward import _by_length, gemm_tflops, pack_calls, padded, segment_max

PADDING = 1


def groups_of(lengths_and_counts, seed=0):
    chance = np.random.default_rng(seed)
    return [chance.integers(2, 99, (count, length)).astype(np.int32) for length, count in lengths_and_counts]


@pytest.mark.parametrize("budget", [1, 7, 64, 500, 100_000])
def test_every_row_is_packed_once_in_order_and_calls_keep_to_the_budget(budget):
    groups = groups_of([(2, 30), (5, 11), (13, 40), (90, 2)])
    calls = list(pack_calls(groups, budget, PADDING))
    flat = np.concatenate([call.ids[: call.tokens] for call in calls])
    assert np.array_equal(flat, np.concatenate([group.ravel() for group in groups]))
    assert sum(call.rows for call in calls) == 83
    for call in calls:
        assert call.tokens <= budget or call.rows == 1
        assert len(call.ids) == len(call.positions) == padded(call.tokens)
        assert sum(rows * length for rows, length in call.segments) == len(call.ids)
    fuller = [a.tokens + b.spans[0][1] > budget for a, b in itertools.pairwise(calls)]
    assert all(fuller), "a call ends only where the next row does not fit"


def test_positions_are_those_of_xlm_r_also_where_a_text_spells_padding():
    rows = np.array([[0, 5, 1, 6, 2], [0, 1, 1, 7, 2]], dtype=np.int32)
    (call,) = pack_calls([rows], 64, PADDING)
    expected = [2, 3, 1, 4, 5, 2, 1, 1, 3, 4]
    assert call.positions[:10].tolist() == expected
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

    theirs = XLMRobertaEmbeddings.create_position_ids_from_input_ids(torch.from_numpy(rows).long(), PADDING)
    assert theirs.ravel().tolist() == expected


def test_a_tail_is_small_and_a_single_query_has_none():
    assert [padded(n) for n in (1, 9, 64, 65, 512, 513, 2048, 2049)] == [1, 9, 64, 96, 512, 640, 2048, 2176]


def test_the_largest_weight_of_each_token_is_kept_within_its_row():
    chance = np.random.default_rng(3)
    lengths = [4, 9, 1, 30]
    rows = np.repeat(np.arange(4), lengths)
    ids, weights = chance.integers(0, 6, len(rows)), chance.random(len(rows)).astype(np.float32)
    kept_ids, kept = segment_max(torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(rows))
    for row in range(4):
        there = rows == row
        expected = {int(t): weights[there & (ids == t)].max() for t in set(ids[there])}
        entries = [(int(t), float(w)) for t, w in zip(kept_ids[there], kept[there], strict=True) if w > 0]
        assert dict(entries) == pytest.approx(expected)
        assert [token for token, _ in entries] == sorted(expected)


def test_attention_stays_within_each_text():
    torch.manual_seed(0)
    segments = ((3, 4), (2, 7), (1, 5))
    query, key, value = torch.randn(3, 31, 2, 8)
    found = _by_length(segments, "cpu")(query, key, value)
    at = 0
    for rows, length in segments:
        for _ in range(rows):
            q, k, v = (part[at : at + length].transpose(0, 1) for part in (query, key, value))
            weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
            assert torch.allclose(found[at : at + length], (weights @ v).transpose(0, 1), atol=1e-5)
            at += length


def test_the_speed_of_a_matrix_product_is_positive_and_finite():
    assert 0 < gemm_tflops(torch.randn(64, 32), 128, seconds=0.05) < 1000
