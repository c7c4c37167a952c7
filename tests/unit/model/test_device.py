"""Devices: a card that cannot be used is an error, never a silent run on the CPU; precisions."""

import pytest

from danbooru_index.choices import Device, Precision
from danbooru_index.errors import DeviceError
from danbooru_index.model import device as devices
from danbooru_index.model.device import cpu_has_bf16, nvidia_driver, probe_device
from danbooru_index.model.shape import gpu_tokens_per_batch


def fake_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce GTX 1060 6GB, 390.12'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_card_that_torch_cannot_use_is_an_error_never_a_silent_cpu_run(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert nvidia_driver() == ("NVIDIA GeForce GTX 1060 6GB", "390.12")
    for device in (Device.AUTO, Device.CUDA):
        with pytest.raises(DeviceError, match=r"390\.12.*torch .*(CPU build|CUDA).*--device cpu"):
            probe_device(device, Precision.AUTO)
    assert probe_device(Device.CPU, Precision.AUTO).kind == "cpu"


@pytest.mark.parametrize(
    ("card_gb", "tokens"),
    [(6, 29_296), (4, 17_089), (2, 4_882), (24, 32_768), (141, 32_768), (1.25, 512)],
)
def test_the_token_budget_follows_the_free_memory(card_gb, tokens):
    """BGE-M3 in fp16 takes 1.2 GB of the card; activations may take half of the rest, so a 6 GB
    card works.
    """
    free = int((card_gb - 1.2) * 1e9)
    assert gpu_tokens_per_batch(free, 1024, 4096) == pytest.approx(tokens, rel=0.001)


def test_devices_and_precisions(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    info = probe_device(Device.AUTO, Precision.AUTO)
    assert info.precision == ("bf16" if cpu_has_bf16() else "fp32")
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        probe_device(Device.CUDA, Precision.AUTO)
    with pytest.raises(DeviceError, match="fp16 on a CPU"):
        probe_device(Device.CPU, Precision.FP16)


@pytest.mark.parametrize(
    ("limit", "bf16", "alone"),
    [
        ("", True, False),
        ("AVX512_CORE_BF16", True, True),
        ("AVX2", False, False),
        ("avx512_core", False, False),
    ],
)
def test_a_processor_has_what_onednn_may_use(limit, bf16, alone, monkeypatch):
    """A limit makes it the smaller processor: fp32 is taken where bf16 would be computed by
    detours, ten times as slow.
    """
    flags = "flags : fpu avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n"
    monkeypatch.setattr(devices, "_cpuinfo", lambda: flags)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu_has_bf16() is bf16
    assert devices.cpu_has_avx512_bf16_alone() is alone
    assert probe_device(Device.CPU, Precision.AUTO).precision == ("bf16" if bf16 else "fp32")
