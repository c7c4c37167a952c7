"""What a model runs on: NVIDIA cards as torch sees them, or the CPU; never a silent fallback."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import subprocess
from pathlib import Path

from danbooru_index.choices import Device, DeviceInfo, Precision
from danbooru_index.errors import DeviceError, first_line
from danbooru_index.machine import _cpuinfo, cpu_name

CARD = Path("/dev/nvidia0")
# The limits of oneDNN that leave no AVX512-BF16, and those that leave no AMX.
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
BEYOND = {
    "avx512_bf16": WITHOUT_BF16,
    "amx_": (*WITHOUT_BF16, "AVX2_VNNI_2", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
}
# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
MALLOC_OPTIONS = {-3: 1 << 30, -1: (1 << 31) - 1, -2: 64 << 20}


def probe_device(device: Device, precision: Precision) -> DeviceInfo:
    """What this process can run on, with AUTO resolved. Raises `DeviceError` where an NVIDIA card
    is there, or was asked for, and torch cannot use it: never a silent run on the CPU.
    """
    if device is not Device.CPU and (device is Device.CUDA or nvidia_driver() is not None):
        import torch

        if torch.cuda.is_available():
            _refuse_card_without_kernels()
            free, total = torch.cuda.mem_get_info()
            chosen = Precision.FP16 if precision is Precision.AUTO else precision
            return DeviceInfo("cuda", torch.cuda.get_device_name(), chosen.value, total, free)
        _refuse_unusable_card(device, torch.__version__, torch.version.cuda)
    if precision is Precision.FP16:
        raise DeviceError(
            "--precision fp16 on a CPU is 8 times slower than fp32 there: use bf16 or fp32"
        )
    if precision is Precision.AUTO:
        precision = Precision.BF16 if cpu_has_bf16() else Precision.FP32
    return DeviceInfo("cpu", cpu_name(), precision.value)


def _refuse_card_without_kernels() -> None:
    """torch sees cards that it has no code for: a product of two small matrices tells."""
    import torch

    try:
        one = torch.ones(16, 16, dtype=torch.float16, device="cuda")
        (one @ one).sum().item()
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability()
        raise DeviceError(
            f"{torch.cuda.get_device_name()} (compute capability {major}.{minor}) cannot be used:"
            f" {first_line(error, 120)}; torch {torch.__version__} is built for"
            f" {' '.join(torch.cuda.get_arch_list())}: install one for this card, free its memory,"
            " or pass --device cpu"
        ) from None


def _refuse_unusable_card(device: Device, torch_version: str, cuda: str | None) -> None:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1")
    card = nvidia_driver()
    if device is Device.CUDA and (card is None or hidden):
        why = "CUDA_VISIBLE_DEVICES hides them all" if hidden else "nvidia-smi finds none"
        raise DeviceError(
            f"--device cuda, but there is no NVIDIA GPU here ({why}); pass --device cpu"
        )
    if card is None or hidden:
        return
    name, driver = card
    if cuda is None:
        remedy = (
            "install a CUDA build: pip install --force-reinstall"
            f" torch=={torch_version.split('+')[0]}"
        )
        wheel = f"torch {torch_version} is a CPU build"
    else:
        remedy = (
            f"update the driver to one for CUDA {cuda} or later, or install torch for the CUDA of"
            " this driver"
        )
        wheel = f"torch {torch_version} is built for CUDA {cuda}"
    raise DeviceError(
        f"{name} (driver {driver}) cannot be used: {wheel}; {remedy}; or pass --device cpu"
    )


def nvidia_driver() -> tuple[str, str] | None:
    """(name, driver version) of the first NVIDIA card, as `nvidia-smi` says; where that is not
    found, whether there is one says its device file; None where there is none.
    """
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        # as under cron, or in a container that has the card and not its tools
        return ("an NVIDIA GPU", "version unknown") if CARD.exists() else None
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = (
        answer.stdout.strip().splitlines()[0]
        if answer.returncode == 0 and answer.stdout.strip()
        else ""
    )
    name, _, driver = first.partition(",")
    return (name.strip(), driver.strip()) if driver else None


def card_count() -> int:
    """The NVIDIA cards of this machine, as `nvidia-smi` lists them; 0 where it cannot be asked."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def keep_buffers() -> None:
    """Have glibc keep large buffers for the next device call on a CPU instead of giving them back
    to the system.

    Measured in fp32 with BGE-M3's layers: 150,000 page faults and a tenth of the time for 512
    texts, and none with this.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in MALLOC_OPTIONS.items():
            library.mallopt(option, value)


def give_back_memory() -> None:
    """What nobody holds any more goes back to the device, so that another process can have it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX; Arm bf16)."""
    flags = _instructions()
    return any(word in flags for word in ("avx512_bf16", "amx_bf16", " bf16"))


def cpu_has_avx512_bf16_alone() -> bool:
    """Whether this CPU has AVX512-BF16 and no AMX: AMD since Zen 4, few of Intel's."""
    flags = _instructions()
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def _instructions() -> str:
    """The processor's flags by Linux, less those that `ONEDNN_MAX_CPU_ISA` forbids oneDNN."""
    flags = _cpuinfo()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    for hidden, isas in BEYOND.items():
        if limit in isas:
            flags = re.sub(rf"\b{hidden}\w*", "", flags)
    return flags
