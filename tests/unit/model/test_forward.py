"""Packing rows into device calls, and the two operations that know where a row ends; against the
plain definitions.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch

from danbooru_index.choices import Precision
from danbooru_index.model.attention import attention_blocked, attention_eager, attention_sdpa
from danbooru_index.model.device_run import OUTPUTS
from danbooru_index.model.loading import load_model
from danbooru_index.model.onednn import fused
from danbooru_index.model.packed_model import PackedModel, gemm_tflops, segment_max
from danbooru_index.model.packing import BLOCK_COSTS, pack, pack_calls, padded
from danbooru_index.model.tuning import NEVER_FILL

PADDING = 1


def texts_of(lengths_and_counts, seed=0):
    chance = np.random.default_rng(seed)
    lengths = np.repeat(*np.array(lengths_and_counts).T)
    return chance.integers(2, 99, int(lengths.sum())).astype(np.int32), chance.permutation(lengths)


def rows_of(ids, lengths):
    return [tuple(row) for row in np.split(ids, np.cumsum(lengths)[:-1])]


MIXED = [(2, 30), (5, 11), (13, 40), (30, 3), (90, 2), (300, 1)]


@pytest.mark.parametrize("block", [0, 32, 64, 128])
@pytest.mark.parametrize("budget", [1, 7, 64, 500, 100_000])
def test_every_text_is_packed_once_and_calls_keep_to_the_budget(budget, block):
    ids, lengths = texts_of(MIXED)
    packing = pack(ids, lengths, (block,))
    calls = list(pack_calls(packing, budget, PADDING))
    assert sorted(packing.order.tolist()) == list(range(len(lengths)))
    texts = rows_of(ids, lengths)
    packed = [row for call in calls for row in rows_of(call.ids[call.places], call.lengths)]
    assert packed == [texts[place] for place in packing.order]
    for call in calls:
        assert len(np.unique(call.places)) == call.tokens == call.lengths.sum()
        assert call.tokens <= budget or call.rows == 1 or (call.blocks == 1 and not call.spans)
        used = call.blocks * block + sum(rows * length for rows, length in call.spans)
        assert len(call.ids) == len(call.positions) == padded(used)
        assert (
            sum(rows * length for rows, length in call.segments)
            == len(call.ids) - call.blocks * block
        )
        assert (np.delete(call.ids, call.places) == PADDING).all()
        within = call.starts < call.blocks * block
        ends = call.starts + call.lengths - 1
        assert (
            (call.starts[within] // block == ends[within] // block).all()
            if block
            else not within.any()
        )
    assert packing.slots == packing.blocks * block + lengths[lengths > block].sum()


def test_calls_that_are_nearly_whole_are_filled_up():
    ids, lengths = texts_of(MIXED)
    packing = pack(ids, lengths, (32,))
    for call in pack_calls(packing, 256, PADDING, fill_from=200):
        used = call.blocks * 32 + sum(rows * length for rows, length in call.spans)
        assert call.whole == (200 <= used <= 256)
        assert len(call.ids) == len(call.positions) == (256 if call.whole else padded(used))
        assert (
            sum(rows * length for rows, length in call.segments) == len(call.ids) - call.blocks * 32
        )
    assert not any(call.whole for call in pack_calls(packing, 256, PADDING))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_layers_are_the_layers(checkpoint, precision):
    """The same outputs within rounding on every processor; where a build fuses them, from the true
    kernels of oneDNN Graph.
    """
    packed = PackedModel(load_model(str(checkpoint), "cpu", Precision(precision)), "cpu")
    ids, lengths = texts_of(MIXED)
    call = next(pack_calls(pack(ids, lengths, (32,)), 256, PADDING, fill_from=1))
    with torch.inference_mode():
        expected = packed(dataclasses.replace(call, whole=False))
        packed.compile(256)
        found = packed(call)
        hidden = torch.zeros(256, packed._layers[0].qkv.shape[1], dtype=packed._layers[0].qkv.dtype)
        fused_by_onednn = "oneDNNFusionGroup" in str(
            packed._compiled[256][0].finish.graph_for(hidden, hidden)
        )
        assert fused_by_onednn or packed.min_fill_ratio == NEVER_FILL
    least = 1e-6 if precision == "fp32" else 1e-3
    for name, ours, theirs in zip(OUTPUTS, found, expected, strict=True):
        if name in ("dense", "colbert"):
            assert (1 - (ours * theirs).sum(-1)).abs().max() < least
        elif name == "sparse_weights":
            # weights up to 1.1
            assert (ours - theirs).abs().max() < (1e-5 if precision == "fp32" else 0.02)
        else:
            assert torch.equal(ours, theirs)


def test_what_cannot_be_fused_runs_as_it_is():
    plain = functools.partial(torch.nn.functional.linear, weight=torch.ones(3, 2))
    assert fused(plain, torch.ones(4, 2)) is plain


def test_a_call_ends_only_where_the_next_text_does_not_fit():
    ids, lengths = texts_of(MIXED)
    calls = list(pack_calls(pack(ids, lengths, (0,)), 64, PADDING))
    assert all(a.tokens + int(b.lengths[0]) > 64 for a, b in itertools.pairwise(calls))


def test_blocks_of_real_lengths_are_nearly_full():
    """Lengths like those of tags: the best of the blocks leaves under 3% of the slots empty."""
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(2.6, 0.4, 4096).astype(np.int64), 4, 512)
    ids = np.zeros(lengths.sum(), np.int32)
    waste = {
        block: pack(ids, lengths, (block,)).slots / lengths.sum() - 1 for block in (32, 64, 128)
    }
    assert 0 <= min(waste.values()) < 0.03
    assert waste[32] < 0.08


@pytest.mark.parametrize(
    ("length", "block"), [(8, 32), (16, 32), (20, 64), (40, 128), (27, 32), (100, 0), (200, 0)]
)
def test_the_cheapest_blocks_follow_from_the_lengths(length, block):
    ids, lengths = texts_of([(length, 500)])
    best = pack(ids, lengths, tuple(BLOCK_COSTS))
    assert (best.block if best.blocks else 0) == block


@pytest.mark.parametrize("block", [0, 32])
def test_positions_are_those_of_xlm_r_also_where_a_text_spells_padding(block):
    rows = np.array([[0, 5, 1, 6, 2], [0, 1, 1, 7, 2]], dtype=np.int32)
    (call,) = pack_calls(pack(rows.ravel(), np.array([5, 5]), (block,)), 64, PADDING)
    expected = [2, 3, 1, 4, 5, 2, 1, 1, 3, 4]
    assert call.positions[call.places].tolist() == expected
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

    theirs = XLMRobertaEmbeddings.create_position_ids_from_input_ids(
        torch.from_numpy(rows).long(), PADDING
    )
    assert theirs.ravel().tolist() == expected


def test_a_tail_is_small_and_a_single_query_has_none():
    assert [padded(n) for n in (1, 9, 64, 65, 512, 513, 2048, 2049)] == [
        1,
        9,
        64,
        96,
        512,
        640,
        2048,
        2176,
    ]


def test_the_largest_weight_of_each_token_is_kept_within_its_row():
    chance = np.random.default_rng(3)
    lengths = [4, 9, 1, 30]
    rows = np.repeat(np.arange(4), lengths)
    ids, weights = chance.integers(0, 6, len(rows)), chance.random(len(rows)).astype(np.float32)
    kept_ids, kept = segment_max(
        torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(rows)
    )
    for row in range(4):
        there = rows == row
        expected = {int(t): weights[there & (ids == t)].max() for t in set(ids[there])}
        entries = [
            (int(t), float(w)) for t, w in zip(kept_ids[there], kept[there], strict=True) if w > 0
        ]
        assert dict(entries) == pytest.approx(expected)
        assert [token for token, _ in entries] == sorted(expected)


@pytest.mark.parametrize("attention", [attention_sdpa, attention_eager])
@pytest.mark.parametrize("block", [0, 32, 64])
def test_attention_stays_within_each_text(block, attention, monkeypatch):
    # so the texts of 70 tokens are longer
    monkeypatch.setattr("danbooru_index.model.attention.LONGEST_IN_TWO", 64)
    torch.manual_seed(0)
    ids, lengths = texts_of([(4, 9), (7, 12), (70, 2), (1, 1)])
    (call,) = pack_calls(pack(ids, lengths, (block,)), 10_000, PADDING)
    assert bool(call.blocks) == bool(block)
    query, key, value = torch.randn(3, len(call.ids), 2, 8)
    found = attention_blocked(call, query, attention)(query, key, value)
    assert torch.isfinite(found).all()
    for start, length in zip(call.starts.tolist(), call.lengths.tolist(), strict=True):
        q, k, v = (part[start : start + length].transpose(0, 1) for part in (query, key, value))
        weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
        assert torch.allclose(
            found[start : start + length], (weights @ v).transpose(0, 1), atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "alone", "attention"),
    [
        ("bf16", True, attention_eager),
        ("bf16", False, attention_sdpa),
        ("fp32", True, attention_sdpa),
    ],
)
def test_two_products_do_the_attention_in_bf16_without_amx(
    checkpoint, precision, alone, attention, monkeypatch
):
    monkeypatch.setattr(
        "danbooru_index.model.packed_model.cpu_has_avx512_bf16_alone", lambda: alone
    )
    packed = PackedModel(load_model(str(checkpoint), "cpu", Precision(precision)), "cpu")
    assert packed._attention.keywords["attention"] is attention
    other = packed.attending_by("eager")
    assert other.blocks == packed.blocks
    assert other._attention.keywords["attention"] is attention_eager


def test_the_speed_of_a_matrix_product_is_positive_and_finite():
    assert 0 < gemm_tflops(torch.randn(64, 32), 128, seconds=0.05) < 1000
