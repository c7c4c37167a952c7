"""The GPU's path as far as a machine without one can follow it: FlashAttention's arguments against
their documented meaning, and one whole forward pass on torch's fake tensors, which have devices,
types and shapes but no values. (The device is `meta`: torch's CPU build knows no other beside the
CPU.)

What that cannot show, memory, streams and what the kernels compute, the tests at the end do where
there is a GPU.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from danbooru_index.choices import Device, Precision
from danbooru_index.model.attention import attention_blocked, attention_sdpa, attention_varlen
from danbooru_index.model.encoder import OUTPUTS, Encoder
from danbooru_index.model.loading import load_model
from danbooru_index.model.packed_model import PackedModel
from danbooru_index.model.packing import pack, pack_calls
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.model.tuning import EncoderTuning

PADDING = 1


def a_call(lengths, seed=0):
    chance = np.random.default_rng(seed)
    lengths = np.array(lengths)
    ids = chance.integers(5, 1000, int(lengths.sum())).astype(np.int32)
    (call,) = pack_calls(pack(ids, lengths, (0,)), 10_000, PADDING)
    return call


def text_by_text(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What `torch.nn.attention.varlen.varlen_attn` documents, one text after the other."""
    assert query.shape == key.shape == value.shape
    assert query.stride(-1) == 1
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q[0] == 0
    assert cu_seq_q[-1] == len(query)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    out = torch.empty_like(query)
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_k[1:].tolist(), strict=True):
        q, k, v = (part[start:stop].transpose(0, 1) for part in (query, key, value))
        out[start:stop] = (
            torch.softmax(q @ k.transpose(1, 2) / query.shape[2] ** 0.5, dim=-1) @ v
        ).transpose(0, 1)
    return out


@pytest.mark.parametrize("lengths", [[1], [7], [4] * 9 + [7] * 12 + [70, 70, 1, 300]])
def test_flash_attention_is_told_where_each_text_ends(lengths, monkeypatch):
    """Its bounds, its longest text, the tail as a text of its own: the result is that of the CPU's
    path.
    """
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", text_by_text)
    torch.manual_seed(0)
    call = a_call(lengths)
    fused = torch.randn(len(call.ids), 3, 2, 8)  # views of one product, as in a layer
    query, key, value = fused.unbind(1)
    found = attention_varlen(call, query)(query, key, value)
    expected = attention_blocked(call, query, attention_sdpa)(query, key, value)
    assert torch.allclose(found[call.places], expected[call.places], atol=1e-5)


@pytest.fixture
def on_a_fake_gpu(checkpoint, monkeypatch):
    """The model in fp16 on a device that has no memory; an operation that mixes devices fails as it
    would there.
    """
    monkeypatch.setattr("danbooru_index.model.packed_model.has_varlen_kernel", lambda weight: True)
    # the driver pins, and there is none
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    model = load_model(str(checkpoint), "cpu", Precision.FP32).half()
    real, mode = torch.from_numpy, FakeTensorMode(allow_non_fake_inputs=True)
    monkeypatch.setattr(torch, "from_numpy", lambda array: mode.from_tensor(real(array)))
    with mode:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                there = {name: value.data for name, value in held.items() if value is not None}
                held.update(
                    {name: torch.empty_like(value, device="meta") for name, value in there.items()}
                )
        yield model


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 16])
def test_a_whole_forward_pass_stays_on_the_gpu(on_a_fake_gpu, width):
    """Types, shapes and devices of every operation, FlashAttention's declared ones among them."""
    projection = None if width == 64 else np.zeros((64, width), np.float32)
    packed = PackedModel(on_a_fake_gpu, "meta", projection)
    assert packed.blocks == (0,)
    assert packed._attention is attention_varlen
    call = a_call([4] * 9 + [12] * 30 + [300])
    with torch.inference_mode():
        found = dict(zip(OUTPUTS, packed(call), strict=True))
    assert {str(part.device) for part in found.values()} == {"meta"}
    assert found["dense"].shape == (call.rows, 64)
    assert (
        found["dense"].dtype
        == found["colbert"].dtype
        == found["sparse_weights"].dtype
        == torch.float32
    )
    assert found["colbert"].shape == (call.tokens - call.rows, width)
    assert found["sparse_ids"].shape == found["sparse_weights"].shape == (call.tokens,)
    assert found["finite"].shape == (call.rows,)
    assert found["finite"].dtype == torch.bool


@pytest.mark.slow
def test_what_mixes_devices_is_caught_there(on_a_fake_gpu):
    """The check can fail: the projection on the CPU, the rest on the GPU."""
    packed = PackedModel(on_a_fake_gpu, "meta", np.zeros((64, 16), np.float32))
    packed._projection = torch.zeros(64, 16, device="cpu")
    with pytest.raises(RuntimeError, match="devices, meta and cpu"), torch.inference_mode():
        packed(a_call([4, 12]))


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def same(encoding, other):
    """Every output equal to the bit."""
    names = ("dense", "colbert", "sparse_ids", "sparse_weights", "sparse_lengths")
    return all(np.array_equal(getattr(encoding, name), getattr(other, name)) for name in names)


@pytest.fixture
def batch(checkpoint, sample):
    return Tokenizer(str(checkpoint), 512)([record["text"] for record in sample])


@on_a_gpu
def test_a_gpu_finds_what_a_cpu_finds_in_every_kind_of_attention(checkpoint, batch):
    expected = Encoder(str(checkpoint)).encode(batch)
    encoder = Encoder(str(checkpoint), Device.CUDA, Precision.FP16)
    for kind in encoder.attentions:
        found = encoder.tuned(EncoderTuning(attention=kind)).encode(batch)
        assert (1 - (found.dense * expected.dense).sum(1)).max() < 1e-3, kind
        assert (1 - (found.colbert * expected.colbert).sum(1)).max() < 1e-3, kind


@on_a_gpu
def test_a_gpu_gives_the_same_bits_again_also_to_several_threads(checkpoint, batch):
    encoder = Encoder(
        str(checkpoint), Device.CUDA, Precision.FP16, tuning=EncoderTuning(tokens_per_batch=1024)
    )
    expected = encoder.encode(batch)
    with ThreadPoolExecutor(3) as threads:
        assert all(
            same(found, expected)
            for found in threads.map(lambda _: encoder.encode(batch), range(12))
        )


@on_a_gpu
def test_a_call_of_more_texts_than_a_grid_has_rows(checkpoint):
    texts = [f"标签{number}" for number in range(70_000)]
    batch = Tokenizer(str(checkpoint), 512)(texts)
    few = Encoder(str(checkpoint), Device.CUDA, Precision.FP16).encode(batch)
    many = Encoder(
        str(checkpoint),
        Device.CUDA,
        Precision.FP16,
        tuning=EncoderTuning(tokens_per_batch=2_000_000),
    ).encode(batch)
    assert (1 - (few.dense * many.dense).sum(1)).max() < 1e-3


@on_a_gpu
def test_running_out_of_memory_halves_the_budget_and_goes_on(checkpoint, batch):
    encoder = Encoder(
        str(checkpoint), Device.CUDA, Precision.FP16, tuning=EncoderTuning(tokens_per_batch=1 << 20)
    )
    expected = encoder.encode(batch)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() + (4 << 20)
    torch.cuda.set_per_process_memory_fraction(
        held / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        found = encoder.encode(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoder.tokens_per_batch < 1 << 20
    assert (1 - (found.dense * expected.dense).sum(1)).max() < 1e-3
