"""The encoder against `BGEM3FlagModel.encode` in one run: the same numbers, for every kind of text,
in any order.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import SHAPES, SHARED, make_checkpoint
from flag_reference import flag_embedding

from danbooru_index.choices import Device, Precision
from danbooru_index.embeddings import EncoderStats
from danbooru_index.errors import ModelError
from danbooru_index.model.batch_plan import BatchPlan
from danbooru_index.model.checkpoint import BUNDLED_FOLDER
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.shape import ModelShape
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.model.tuning import NEVER_FILL, EncoderTuning

MIXED = [
    "【服装】school_uniform - 学生制服。包括水手服、西式制服等",
    "ツインテール",
    "긴 머리 소녀, 세라복 교복",
    "девушка с длинными волосами",
    "فتاة ذات شعر طويل",
    "hair over one eye",
    "^_^",
    r"\||/",
    "  spaces   inside\tand\nlines ",
    "a",
    "special <pad> tokens <s> </s> <unk> inside",
    "repeat repeat repeat repeat",
    "😀 emoji \u200b zero width",
    "word " * 700,
]


def assert_parity(expected, encoding, tolerance=1e-5):
    count = len(expected["dense_vecs"])
    assert np.abs(encoding.dense - expected["dense_vecs"]).max() <= tolerance
    for row in range(count):
        matrix = encoding.colbert_row(row)
        assert matrix.shape == expected["colbert_vecs"][row].shape
        assert np.abs(matrix - expected["colbert_vecs"][row]).max() <= tolerance
        weights = {
            int(token): float(weight) for token, weight in expected["lexical_weights"][row].items()
        }
        ours = encoding.sparse_row(row)
        assert ours.keys() == weights.keys()
        assert list(ours) == sorted(ours)
        assert all(abs(ours[token] - weights[token]) <= tolerance for token in weights)


@pytest.fixture(scope="module")
def texts(sample):
    return MIXED + [record["text"] for record in sample] + MIXED[:3]


@pytest.mark.slow
def test_fp32_equals_flag_embedding(checkpoint, texts):
    batch = Tokenizer(str(checkpoint), 512)(texts)
    assert batch.truncated == 1
    assert_parity(flag_embedding(checkpoint, texts), Encoder(str(checkpoint)).encode(batch))


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "XLMRobertaTokenizer"},
        {"tokenizer_class": "XLMRobertaTokenizerFast", "extra_special_tokens": ["<mask>"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<mask>"},
        {"tokenizer_class": "TokenizersBackend", "truncation_side": "left"},
        {"tokenizer_class": "XLMRobertaTokenizer", "split_special_tokens": True},
        {"tokenizer_class": None},
        {},
        None,
    ],
)
def test_the_tokenizer_is_the_one_that_auto_tokenizer_makes(checkpoint, tmp_path, settings, texts):
    """To the byte of its serialised form, whatever class the checkpoint names; `AutoTokenizer` is
    what FlagEmbedding calls.
    """
    from transformers import AutoTokenizer

    path = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, path)
    config = path / "tokenizer_config.json"
    config.unlink() if settings is None else config.write_text(json.dumps(settings))
    ours, theirs = Tokenizer(str(path), 512), AutoTokenizer.from_pretrained(path)
    expected = theirs(texts, truncation=True, max_length=512)["input_ids"]
    assert ours.backend.to_str() == theirs.backend_tokenizer.to_str()
    special = {
        theirs.cls_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
        theirs.unk_token_id,
    } - {None}
    batch = ours(texts)
    assert set(batch.special) == special
    assert batch.truncated == 1
    assert batch.token_ids.tolist() == list(itertools.chain.from_iterable(expected))


@pytest.mark.parametrize("model", ["checkpoint", "embedded"])
def test_a_tokeniser_needs_no_torch(checkpoint, model):
    """A second less, and 0.2 GB, in every tokenising process."""
    path = BUNDLED_FOLDER if model == "embedded" else checkpoint
    script = (
        "import sys; import danbooru_index.pipeline.tokenize_stage; from"
        f" danbooru_index.model.tokenizer import Tokenizer; assert Tokenizer({str(path)!r},"
        " 512)(['cat ears']).tokens; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_fp32_equals_flag_embedding_on_real_tags(checkpoint, real_records):
    texts = [record["text"] for record in real_records[:1500]]
    encoding = Encoder(str(checkpoint)).encode(Tokenizer(str(checkpoint), 512)(texts))
    assert_parity(flag_embedding(checkpoint, texts), encoding)


@pytest.mark.slow
def test_parity_with_the_real_tokenizer_and_layer_width(tmp_path, sample):
    tokenizer = SHARED / "xlmr_tokenizer" / "tokenizer.json"
    if not tokenizer.exists():
        pytest.skip("shared/xlmr_tokenizer is not here")
    path = make_checkpoint(tmp_path / "wide", SHAPES["six"], tokenizer=tokenizer)
    texts = [*MIXED[:-1], *(record["text"] for record in sample[:60])]
    expected = flag_embedding(path, texts)
    batch = Tokenizer(str(path), 512)(texts)
    assert_parity(expected, Encoder(str(path)).encode(batch))
    half = Encoder(str(path), precision=Precision.BF16).encode(batch)
    assert_cosine(half, expected)


@pytest.mark.slow
@pytest.mark.skipif(
    "REAL_SHAPE" not in os.environ, reason="set REAL_SHAPE=1: 2.3 GB of weights, two minutes"
)
def test_parity_at_the_true_shape_of_bge_m3(tmp_path, real_records):
    """24 layers, 1024 wide, 250,002 entries; random weights, in the published form
    (`pytorch_model.bin`).
    """
    tokenizer = SHARED / "xlmr_tokenizer" / "tokenizer.json"
    path = make_checkpoint(
        tmp_path / "real", SHAPES["real"], tokenizer=tokenizer, safetensors=False
    )
    texts = [*MIXED[:-1], *(record["text"] for record in real_records[:60])]
    expected = flag_embedding(path, texts)
    batch = Tokenizer(str(path), 512)(texts)
    assert_parity(expected, Encoder(str(path)).encode(batch))
    assert_cosine(
        Encoder(str(path), precision=Precision.BF16, half_output=True).encode(batch), expected
    )


def assert_cosine(encoding, expected, least=0.999):
    def cosine(a, b):
        a, b = a.astype(np.float64), b.astype(np.float64)
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    assert cosine(encoding.dense, expected["dense_vecs"]).min() >= least
    assert cosine(encoding.colbert, np.concatenate(expected["colbert_vecs"])).min() >= least
    assert np.abs(np.linalg.norm(encoding.dense, axis=1) - 1).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_bf16_is_close_to_flag_embedding(checkpoint, texts, alone, monkeypatch):
    """By either attention of a CPU, whichever this one takes."""
    monkeypatch.setattr(
        "danbooru_index.model.packed_model.cpu_has_avx512_bf16_alone", lambda: alone
    )
    encoding = Encoder(str(checkpoint), precision=Precision.BF16, half_output=True).encode(
        Tokenizer(str(checkpoint), 512)(texts)
    )
    assert encoding.dense.dtype == encoding.colbert.dtype == np.float16
    assert_cosine(encoding, flag_embedding(checkpoint, texts))


@pytest.mark.slow
def test_a_text_of_8192_tokens(checkpoint):
    texts = ["long " * 9000, "short"]
    batch = Tokenizer(str(checkpoint), 8192)(texts)
    assert batch.lengths.max() == 8192
    assert batch.truncated == 1
    assert_parity(flag_embedding(checkpoint, texts, 8192), Encoder(str(checkpoint)).encode(batch))


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return Encoder(str(checkpoint))


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer(str(checkpoint), 512)


@pytest.mark.slow
def test_order_and_company_change_nothing(encoder, tokenizer, texts):
    straight = encoder.encode(tokenizer(texts))
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = encoder.encode(tokenizer([texts[place] for place in order]))
    assert np.array_equal(shuffled.dense, straight.dense[order])
    for place, row in enumerate(order.tolist()):
        assert np.array_equal(shuffled.colbert_row(place), straight.colbert_row(row))
        assert shuffled.sparse_row(place) == straight.sparse_row(row)
    alone = encoder.encode(tokenizer([texts[5]]))
    assert np.abs(alone.dense[0] - straight.dense[5]).max() < 1e-5


@pytest.mark.slow
def test_identical_texts_are_encoded_once(encoder, tokenizer):
    before = encoder.stats.computed
    batch = tokenizer(["same text", "other", "same text", "same text"])
    encoding = encoder.encode(batch)
    computed = encoder.stats.computed - before
    assert computed == batch.lengths[:2].sum()
    assert np.array_equal(encoding.dense[0], encoding.dense[3])
    assert encoding.sparse_row(0) == encoding.sparse_row(2)
    assert encoder.stats.computed <= encoder.stats.processed <= 1.03 * encoder.stats.computed


@pytest.mark.slow
def test_nothing_and_one_record(encoder, tokenizer):
    assert len(encoder.encode(tokenizer([])).dense) == 0
    one = encoder.encode(tokenizer(["x"]))
    assert one.dense.shape == (1, 64)
    assert one.colbert.shape == (int(one.colbert_lengths[0]), 64)


@pytest.mark.slow
def test_out_of_memory_halves_the_budget_and_then_fails_by_name(checkpoint, tokenizer, monkeypatch):
    encoder = Encoder(str(checkpoint), tuning=EncoderTuning(tokens_per_batch=1024))
    forward = encoder._run.forward

    def scarce(call):
        if call.tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(call)

    monkeypatch.setattr(encoder._run, "forward", scarce)
    batch = tokenizer(["one two three"] + [f"text number {n}" for n in range(50)])
    encoding = encoder.encode(batch)
    assert len(encoding.dense) == 51
    assert encoder.tokens_per_batch == 64
    monkeypatch.setattr(
        encoder._run, "to_host", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    with pytest.raises(ModelError, match="out of memory on cpu even at 64 tokens"):
        encoder.encode(batch)
    monkeypatch.setattr(
        encoder._run, "forward", lambda call: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    with pytest.raises(ModelError, match="out of memory"):
        encoder.encode(batch)


@pytest.mark.slow
def test_streams_change_nothing_and_their_errors_arrive(checkpoint, tokenizer, texts, monkeypatch):
    assert [
        Encoder(str(checkpoint), threads=n)._run.scheduler.streams for n in (1, 2, 5, 6, 8)
    ] == [1, 2, 1, 3, 4]
    alone, several = (
        Encoder(str(checkpoint), threads=n, tuning=EncoderTuning(tokens_per_batch=512))
        for n in (1, 2)
    )
    batch, told = tokenizer(texts), []
    expected, found = alone.encode(batch), several.encode(batch, told.append)
    assert len(told) >= 4
    assert sum(told) == len(set(texts))
    assert np.abs(found.dense - expected.dense).max() < 1e-5
    assert np.abs(found.colbert - expected.colbert).max() < 1e-5
    assert np.array_equal(found.sparse_ids, expected.sparse_ids)
    monkeypatch.setattr(several._run, "forward", lambda call: 1 / 0)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        several.encode(batch)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_a_batch_comes_out_the_same_to_the_bit_whatever_came_before(
    checkpoint, tokenizer, texts, precision
):
    """Large batches go through fused layers, small ones do not, whether these have been made or
    not.
    """

    full = EncoderTuning(tokens_per_batch=256, min_fill_ratio=0.9)

    def bits(encoder, batch):
        encoding = encoder.encode(batch)
        return [
            getattr(encoding, name).tobytes()
            for name in ("dense", "colbert", "sparse_ids", "sparse_weights")
        ]

    def fresh():
        return Encoder(str(checkpoint), Device.CPU, precision, threads=2, tuning=full)

    large, small = tokenizer(texts), tokenizer(texts[:20])
    encoder, other = fresh(), fresh()
    assert any(call.whole for call in encoder._run.calls(BatchPlan(large, encoder._run.blocks)))
    assert not any(call.whole for call in encoder._run.calls(BatchPlan(small, encoder._run.blocks)))
    expected = bits(encoder, small), bits(encoder, large)
    assert (bits(encoder, small), bits(encoder, large)) == expected
    assert (bits(other, large), bits(other, small)) == expected[::-1]
    plain = encoder.tuned(EncoderTuning(tokens_per_batch=256, min_fill_ratio=NEVER_FILL))
    found, wanted = encoder.encode(large), plain.encode(large)
    assert (1 - (found.dense * wanted.dense).sum(1)).max() < (
        1e-6 if precision is Precision.FP32 else 1e-3
    )


@pytest.mark.slow
def test_the_next_batch_begins_before_the_last_call_of_this_one_ends(
    checkpoint, tokenizer, texts, monkeypatch
):
    """No pause between batches; the time of both together is counted once."""
    encoder = Encoder(str(checkpoint), threads=2, tuning=EncoderTuning(tokens_per_batch=512))
    batches = [tokenizer(texts), tokenizer([f"{text} again" for text in texts])]
    expected = [encoder.encode(batch) for batch in batches]
    calls = len(encoder._run.calls(BatchPlan(batches[0], encoder._run.blocks)))
    forward, begun, first, second = (
        encoder._run.forward,
        itertools.count(1),
        threading.Event(),
        threading.Event(),
    )

    def waits(call):
        number = next(begun)
        first.set()
        if number == calls:
            assert second.wait(30)
        elif number == calls + 1:
            second.set()
        return forward(call)

    monkeypatch.setattr(encoder._run, "forward", waits)
    stats = [EncoderStats(), EncoderStats()]
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as callers:
        running = [callers.submit(encoder.encode, batches[0], None, stats[0])]
        assert first.wait(30)
        running.append(callers.submit(encoder.encode, batches[1], None, stats[1]))
        for encoding, other in zip([one.result() for one in running], expected, strict=True):
            assert np.abs(encoding.dense - other.dense).max() < 1e-5
            assert np.array_equal(encoding.sparse_ids, other.sparse_ids)
    assert second.is_set()
    assert 0 < sum(one.seconds for one in stats) <= time.perf_counter() - started


@pytest.mark.slow
def test_results_that_find_no_memory_on_the_way_back_take_the_plain_one(
    checkpoint, tokenizer, texts, monkeypatch
):
    """Pinned memory, or the device's, may be gone when all is encoded: that is not lost."""
    encoder = Encoder(str(checkpoint))
    batch = tokenizer(texts)
    expected = encoder.encode(batch)

    def full(*_):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(encoder._run, "_copies", "the stream of a GPU")
    monkeypatch.setattr(encoder._run, "to_host", full)
    found = encoder.encode(batch)
    for name in (
        "dense",
        "sparse_ids",
        "sparse_weights",
        "sparse_lengths",
        "colbert",
        "colbert_lengths",
    ):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.slow
def test_batches_that_run_out_of_memory_together_halve_once(checkpoint):
    encoder = Encoder(str(checkpoint), tuning=EncoderTuning(tokens_per_batch=512))
    encoder._run.halve(512)
    encoder._run.halve(512)
    assert encoder.tokens_per_batch == 256


@pytest.mark.slow
def test_other_errors_are_not_retried(checkpoint, tokenizer, monkeypatch):
    encoder = Encoder(str(checkpoint))
    calls = []
    monkeypatch.setattr(encoder._run, "forward", lambda call: calls.append(1) or 1 / 0)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        encoder.encode(tokenizer(["x"]))
    assert len(calls) == 1


@pytest.mark.slow
def test_non_finite_outputs_are_recomputed_in_fp32_or_listed(checkpoint, tmp_path, tokenizer):
    """A NaN in one token's embedding spoils just the texts with that token; fp32 does not help:
    they are bad.
    """
    from safetensors.torch import load_file, save_file

    path = tmp_path / "spoiled"
    shutil.copytree(checkpoint, path)
    batch = tokenizer(["twintails", "cat ears", "twintails umbrella"])
    shared = set(tokenizer(["twintails"]).token_ids.tolist()) - set(
        tokenizer(["cat ears"]).token_ids.tolist()
    )
    weights = load_file(path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][max(shared)] = float("nan")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    encoder = Encoder(str(path), precision=Precision.BF16)
    encoding = encoder.encode(batch)
    assert encoding.non_finite.tolist() == [0, 2]
    assert np.isfinite(encoding.dense).all()
    assert np.isfinite(encoding.colbert).all()
    assert encoding.sparse_row(1)
    assert encoder.stats.recomputed == 2
    # Among many, its neighbours in a block come out as if it were not there: those that it spoiled
    # are encoded again.
    others = [f"text {n}" for n in range(200)]
    among = encoder.encode(tokenizer([*others, "twintails"]))
    clean = encoder.encode(tokenizer(others))
    assert among.non_finite.tolist() == [200]
    assert 3 < encoder.stats.recomputed < 40
    assert (among.dense[:200] * clean.dense).sum(1).min() > 0.999
    assert not len(clean.non_finite)


@pytest.mark.slow
def test_what_fp32_can_save_is_saved(checkpoint, tokenizer, monkeypatch):
    encoder = Encoder(str(checkpoint), precision=Precision.BF16)
    forward = encoder._run.forward

    def overflowing(call):
        dense, sorted_ids, weights, colbert, finite = forward(call)
        return dense * float("nan"), sorted_ids, weights, colbert, torch.zeros_like(finite)

    monkeypatch.setattr(encoder._run, "forward", overflowing)
    batch = tokenizer(["cat ears", "umbrella"])
    encoding = encoder.encode(batch)
    expected = Encoder(str(checkpoint)).encode(batch)
    assert not len(encoding.non_finite)
    assert np.allclose(encoding.dense, expected.dense, atol=1e-6)


@pytest.mark.parametrize(
    "missing", ["sparse_linear.pt", "colbert_linear.pt", "model.safetensors", "tokenizer.json"]
)
def test_an_incomplete_checkpoint_is_refused(checkpoint, tmp_path, missing):
    from danbooru_index.model.checkpoint import resolve_model

    path = tmp_path / "model"
    shutil.copytree(checkpoint, path)
    (path / missing).unlink()
    with pytest.raises(ModelError, match=missing.replace(".", r"\.")):
        resolve_model(str(path))


def test_any_change_of_a_checkpoint_changes_its_id(checkpoint, tmp_path):
    from danbooru_index.model.checkpoint import model_id

    path = tmp_path / "model"
    shutil.copytree(checkpoint, path)
    before = model_id(path)
    assert before == model_id(checkpoint)
    for name in (
        "config.json",
        "model.safetensors",
        "sparse_linear.pt",
        "colbert_linear.pt",
        "tokenizer.json",
    ):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content + b" ")
        assert model_id(path) != before
        (path / name).write_bytes(content)
    assert model_id(path) == before


def test_a_checkpoint_that_asks_to_run_code_is_refused(checkpoint, tmp_path):
    from danbooru_index.model.checkpoint import resolve_model

    path = tmp_path / "model"
    shutil.copytree(checkpoint, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}})
    )
    with pytest.raises(ModelError, match="auto_map"):
        resolve_model(str(path))


@pytest.mark.slow
def test_a_pickled_head_runs_no_code(checkpoint, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "model"
    shutil.copytree(checkpoint, path)
    (path / "sparse_linear.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="cannot load"):
        Encoder(str(path))
    assert not (tmp_path / "owned").exists()


def test_a_device_call_has_a_time_in_which_it_must_end(encoder):
    """The watchdog's limit: a minute and a little for a tiny model, minutes for BGE-M3 on a slow
    CPU.
    """
    assert 60 < encoder.call_s(512) < 61
    bge = ModelShape(dim=1024, layers=24, intermediate=4096, padding_id=1)
    assert 300 < bge.longest_call_s(2048, 512, "cpu") < 600
    assert 60 < bge.longest_call_s(32_768, 8192, "cuda") < 180
