"""`jobs/gpu_check.py`, as far as a machine without a GPU can run it: its parts on the CPU."""

import json
import signal
import sys
import time

import pytest
from processes import ROOT, running

sys.path.insert(0, str(ROOT / "jobs"))
import gpu_check

SCRIPT = str(ROOT / "jobs" / "gpu_check.py")


@pytest.mark.slow
def test_without_a_gpu_it_says_so():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with running([sys.executable, SCRIPT]) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err == "gpu_check: torch sees no GPU here; --device cpu tries it\n"


@pytest.mark.long
@pytest.mark.release
@pytest.mark.ray
@pytest.mark.slow
def test_its_parts_on_a_cpu(checkpoint, tmp_path):
    """Rows for BENCHMARKS.md; a part that fails leaves the others alone, and the exit code says
    so.
    """
    out = tmp_path / "out.json"
    command = [sys.executable, SCRIPT, "--device", "cpu", "--model", str(checkpoint)]
    command += ["--rows", "48", "--records", "600", "--folder", str(tmp_path / "f")]
    command += ["--out", str(out), "--part", "vllm", "--part", "encoder", "--part", "build-full"]
    with running(command) as process:
        table, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "| vllm | not measured: vllm is not installed | `gpu_check.py --part vllm` |" in table
    assert "fp32: useful TFLOP/s" in table
    assert "| fp32: rows of other sparse keys | 0 |" in table
    assert "| 600 records, build, to published |" in table
    assert json.loads(out.read_text()).keys() == {"vllm", "encoder", "build-full"}


def test_what_does_not_fit_its_minutes_is_stopped():
    """By SIGTERM where it can go on later, after which it has a minute."""
    heard = "import signal, time, sys\nsignal.signal(15, lambda *_: sys.exit('stopped'))\n"
    began = time.monotonic()
    code, out = gpu_check.run(
        [sys.executable, "-c", heard + "print('begun', flush=True); time.sleep(60)"],
        3.0,
        stop=signal.SIGTERM,
    )
    assert (code, out) == (1, "begun\n")
    assert time.monotonic() - began < 50
    with pytest.raises(gpu_check.PartError, match="not done after 1 s"):
        gpu_check.document([sys.executable, "-c", "import time; time.sleep(60)"], 1.0)


def test_records_are_counted_by_their_completion_records(tmp_path):
    index = ROOT / "tests" / "data" / "index_of_0_1" / "index"
    assert gpu_check.records_done(tmp_path) == 0
    assert gpu_check.records_done(index) > 0
