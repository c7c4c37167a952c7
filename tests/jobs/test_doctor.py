"""The doctor: healthy on a machine that is, and one line of advice for each thing that is not."""

import json

import pytest
from processes import run_cli

from danbooru_index import versions
from danbooru_index.choices import DeviceInfo
from danbooru_index.index.estimate import index_bytes
from danbooru_index.pipeline import doctor as doctor_module
from danbooru_index.pipeline.doctor import DoctorConfig, doctor


@pytest.mark.ray
@pytest.mark.slow
def test_a_healthy_installation(checkpoint, tmp_path):
    done = run_cli(
        "doctor",
        "--model",
        checkpoint,
        "--device",
        "cpu",
        "--records",
        "1000",
        "--path",
        tmp_path,
        "--json",
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["healthy"]
    found = {item["what"]: item["found"] for item in report["findings"]}
    assert {"python", "ray", "torch", "device", "model", "encode", "disk"} <= found.keys()
    assert "2 layers, 64 wide" in found["model"]
    assert "dense, sparse and ColBERT" in found["encode"]
    assert "1,000 records take" in found["disk"]


@pytest.fixture
def quick(monkeypatch):
    """Without Ray, whose start other tests show."""
    monkeypatch.setattr(doctor_module, "_ray", lambda _config: ("not looked at", None))


def advice(report):
    return {item.what: item.advice for item in report.findings if item.advice}


def test_a_checkpoint_without_a_head_and_a_full_disk(checkpoint, tmp_path, quick, monkeypatch):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "sparse_linear.pt").unlink()
    monkeypatch.setattr(doctor_module, "free_bytes", lambda _path: 5 * 10**9)
    report = doctor(
        DoctorConfig(model=str(broken), records=1_386_373, path=str(tmp_path / "not" / "yet"))
    )
    said = advice(report)
    assert not report.healthy
    assert said.keys() == {"model", "disk"}
    assert "sparse_linear.pt missing" in said["model"]
    assert "5.0 GB free" in said["disk"]
    assert report.to_text().count("-> ") == 2


def test_colbert_at_128_is_the_advice_where_only_that_fits(
    checkpoint, tmp_path, quick, monkeypatch
):

    between = (
        index_bytes(1_386_373, 1024, 128, 12.7) + index_bytes(1_386_373, 1024, 1024, 12.7)
    ) // 2
    monkeypatch.setattr(doctor_module, "free_bytes", lambda _path: between)
    report = doctor(DoctorConfig(model="/no/such", path=str(tmp_path)))
    assert "--colbert-dim 128" in advice(report)["disk"]


def test_an_old_version_stops_the_doctor_there(quick, monkeypatch):
    monkeypatch.setattr(versions, "FLOORS", {"ray": ("99.0", "a reason"), "torch": ("2.10", "")})
    report = doctor(DoctorConfig())
    assert "older than 99.0 (a reason)" in advice(report)["ray"]
    assert [item.what for item in report.findings][-1] in doctor_module.SHOWN_VERSIONS


def test_a_card_that_is_full(checkpoint, tmp_path, quick, monkeypatch):
    card = DeviceInfo("cuda", "NVIDIA RTX 4090", "fp16", 24 * 10**9, 10**9)
    monkeypatch.setattr(doctor_module, "probe_device", lambda *_: card)
    said = advice(doctor(DoctorConfig(model=str(checkpoint), path=str(tmp_path), records=10)))
    assert "1.0 GB of its 24.0 GB are free" in said["device"]


def test_the_index_of_a_full_dump_takes_what_was_measured():
    """STORAGE.md measured 2.85 GB dense and 33 GB ColBERT in full, 4.2 GB at 128; beside the tables
    lie the dense vectors again, the narrow ColBERT vectors again, and 0.6 GB of names.
    """
    assert 39.5e9 < index_bytes(1_386_373, 1024, 1024, 12.7) < 1.3 * 39.5e9
    assert 14.8e9 < index_bytes(1_386_373, 1024, 128, 12.7) < 1.3 * 14.8e9
