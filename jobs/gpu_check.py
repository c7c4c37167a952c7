"""All that is to be measured on a GPU, by one command on a machine that has one:

    python jobs/gpu_check.py [--part encoder ...] [--model BAAI/bge-m3] [--out gpu_check.json]

From a checkout, with the project installed. Each part is a process of its own with `--minutes` of
time; none needs another to succeed. A build that does not fit is stopped, and the table says how
many records it did: nothing is extrapolated. Results are added to `--out` part by part; the last
lines are rows for BENCHMARKS.md. Without `--model`, weights of BGE-M3's shape with random values
are made: exact for speed and parity, without any quality.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-m", "danbooru_index.cli"]
SHARED = ROOT.parent / "shared"
RECORDS = 1_386_373  # of the published baseline
STOPPING_S = 60
# Dense fp16 products with fp32 sums, TFLOP/s, by NVIDIA's data sheets: the "peak" of MFU.
PEAKS = {
    "H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "A100": 312.0, "L40S": 362.1, "L4": 121.0,
    "RTX 4090": 165.2, "RTX 3090": 71.0, "V100": 125.0, "T4": 65.0,
}  # fmt: skip
Rows = list[tuple[str, str]]  # (what, measured)


@dataclass(frozen=True)
class Check:
    """What the parts share."""

    device: str
    model: str
    folder: Path
    records: int
    rows: int
    seconds: float


class PartError(Exception):
    """A part that gave no figure; the message says why, in one line."""


def run(command: list[str], seconds: float, *, stop: int = signal.SIGKILL) -> tuple[int, str]:
    """A process and its stdout; what goes on after `seconds` gets the signal `stop`."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(stop)
            try:
                out, _ = process.communicate(timeout=STOPPING_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                out, _ = process.communicate()
    return process.returncode, out


def document(command: list[str], seconds: float) -> dict[str, Any]:
    """The JSON document that a command prints last."""
    code, out = run(command, seconds)
    if code < 0:
        raise PartError(f"not done after {seconds:.0f} s")
    if code:
        raise PartError(f"ended with {code}; its last words are above")
    answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return answer


def tests(check: Check) -> Rows:
    """The tests that need a GPU: parity, same bits again, large grids, out-of-memory halving."""
    names = [str(ROOT / "tests" / "unit" / "model" / "test_gpu.py")]
    code, out = run([sys.executable, "-m", "pytest", "-q", "-rs", *names], check.seconds)
    last = out.strip().splitlines()[-1].strip("= ") if out.strip() else "said nothing"
    if code:
        raise PartError(last)
    return [("tests of the GPU's path", last)]


def bench(check: Check, part: str) -> dict[str, Any]:
    """What `danbooru-index benchmark` measures of a part."""
    words = ["benchmark", part, "--model", check.model, "--device", check.device, "--json"]
    words += ["--rows", str(check.rows), "--input", str(dump(check, check.rows))]
    measured: dict[str, Any] = document([*CLI, *words], check.seconds)["parts"][part]
    return measured


def spread(ratio: dict[str, float]) -> str:
    """The median of the rounds, and the least and the most."""
    return f"{ratio['median']} ({ratio['least']} to {ratio['most']})"


def encoder(check: Check) -> Rows:
    """Speed against FlagEmbedding at its best batch size, parity, useful TFLOP/s."""
    measured = bench(check, "encoder")
    rows = [(f"encoder, {name}", spread(ratio)) for name, ratio in measured["ratios"].items()]
    rows += [
        (f"texts/s, {name}", f"{times['texts_per_second']:,.0f}")
        for name, times in measured["seconds"].items()
    ]
    peak = peak_of_card(check.device)
    for precision, use in measured["device"].items():
        achieved, memory = use["tflops_per_second"], use["peak_memory_gb"]
        rows += [
            (f"{precision}: useful TFLOP/s", f"{achieved:.1f}"),
            (f"{precision}: share of matrix products' speed", f"{use['share_of_gemm']:.1%}"),
            (f"{precision}: tokens a call", f"{use['tokens_per_call']:,.0f}"),
            (f"{precision}: peak memory", f"{memory:.2f} GB"),
        ]
        rows += [(f"{precision}: MFU", f"{achieved / peak:.1%} of {peak:,.0f}")] if peak else []
    for precision, found in measured["agreement"].items():
        rows += [
            (f"{precision}: least cosine, dense", f"{found['least_dense_cosine']:.6f}"),
            (f"{precision}: least cosine, ColBERT", f"{found['least_colbert_cosine']:.6f}"),
            (f"{precision}: rows of other sparse keys", f"{found['rows_with_other_sparse_keys']}"),
        ]
    return rows


def packing(check: Check) -> Rows:
    """Padding, and what a token budget costs and gives."""
    return [(f"packing, {name}", json.dumps(v)) for name, v in bench(check, "packing").items()]


def job(check: Check) -> Rows:
    """The whole job against JSON lines -> FlagEmbedding -> Chroma."""
    if not find_spec("chromadb"):
        raise PartError("chromadb is not installed: pip install -e '.[benchmark]'")
    return [("whole job / script -> Chroma", spread(bench(check, "job")["ratio"]))]


VLLM = """
import json, sys, time
from vllm import LLM
texts = json.load(open(sys.argv[2]))
model = LLM(model=sys.argv[1], runner="pooling", dtype="float16", max_model_len=512,
            hf_overrides={"architectures": ["BgeM3EmbeddingModel"]})
seconds = {}
for task in ("embed", "token_embed", "token_classify"):
    model.encode(texts[:256], pooling_task=task, use_tqdm=False)
    began = time.perf_counter()
    model.encode(texts, pooling_task=task, use_tqdm=False)
    seconds[task] = time.perf_counter() - began
print(json.dumps(seconds))
"""


def vllm(check: Check) -> Rows:
    """vLLM's pooling of the three outputs, one pass each, beside ours of the same texts."""
    if not find_spec("vllm"):
        raise PartError("vllm is not installed")
    texts = check.folder / "texts.json"
    lines = dump(check, check.rows).read_text(encoding="utf-8").splitlines()
    texts.write_text(json.dumps([json.loads(line)["text"] for line in lines]))
    seconds = document([sys.executable, "-c", VLLM, check.model, str(texts)], check.seconds)
    rows = [(f"vLLM, {task}, texts/s", f"{check.rows / s:,.0f}") for task, s in seconds.items()]
    return [*rows, ("vLLM, all three, texts/s", f"{check.rows / sum(seconds.values()):,.0f}")]


def build(check: Check, *options: str) -> Rows:
    """1,386,373 records from dump to published, as far as the minutes go."""
    name = "-".join(["build", *options]).replace("--", "")
    began = time.monotonic()
    path, records = dump(check, check.records), check.records
    shards, index = check.folder / "shards", check.folder / name
    if not (shards / "prepare.json").exists():
        document([*CLI, "prepare", str(path), "--out", str(shards), "--json"], check.seconds)
    left = check.seconds - (time.monotonic() - began)
    words = [*CLI, "build", str(shards), "--index", str(index), "--model", check.model]
    words += ["--device", check.device, "--json", *options]
    began = time.monotonic()
    code, out = run(words, left, stop=signal.SIGTERM)
    what = f"{records:,} records, {name.replace('-', ' ')}"
    if code:
        done, took = records_done(index), time.monotonic() - began
        if not done or took < left:
            raise PartError(f"ended with {code} after {took:.0f} s; its last words are above")
        return [(what, f"stopped after {took:.0f} s with {done:,} records done")]
    report = json.loads(out.strip().splitlines()[-1])
    use = report["devices"][0]
    return [
        (f"{what}, to published", f"{report['seconds']['total']:.0f} s"),
        (f"{what}, tags/s while encoding", f"{report['tags_per_second']['encode']:,.0f}"),
        (f"{what}, device busy", f"{use['busy_share']:.1%}"),
    ]


def build_128(check: Check) -> Rows:
    """With ColBERT vectors of 128 values, whatever fidelity random weights have."""
    return build(check, "--colbert-dim", "128", "--min-fidelity", "0")


def build_full(check: Check) -> Rows:
    """With ColBERT vectors in full."""
    return build(check)


PARTS: dict[str, Callable[[Check], Rows]] = {
    "tests": tests, "encoder": encoder, "packing": packing, "vllm": vllm, "job": job,
    "build-128": build_128, "build-full": build_full,
}  # fmt: skip


def records_done(index: Path) -> int:
    """The records of the shards that have their completion record."""
    from danbooru_index.index.completion import CompletionRecord

    records = index.glob("generations/*/shards/*.json")
    return sum(CompletionRecord.from_bytes(path.read_bytes()).rows for path in records)


def dump(check: Check, records: int) -> Path:
    """A dump of so many records, the real tags where shared/ has them."""
    sys.path.insert(0, str(ROOT / "tests" / "scale"))
    from full_size import REAL, SAMPLE, write_dump

    path = check.folder / f"tags-{records}.jsonl"
    if not path.exists():
        write_dump(REAL if REAL.exists() else SAMPLE, records, path)
    return path


def peak_of_card(device: str) -> float:
    """TFLOP/s of the first card, 0 for one that is not in the list."""
    if device != "cuda":
        return 0.0
    import torch

    name = torch.cuda.get_device_name()
    return next((peak for word, peak in PEAKS.items() if all(w in name for w in word.split())), 0.0)


def made_model(folder: Path) -> str:
    """Weights of BGE-M3's shape with random values, and the real tokenizer where shared/ has it."""
    out = folder / "model"
    if not out.exists():
        maker = [sys.executable, str(ROOT / "tests" / "support" / "checkpoints.py"), str(out)]
        tokenizer = SHARED / "xlmr_tokenizer" / "tokenizer.json"
        given = ["--tokenizer", str(tokenizer)] if tokenizer.exists() else []
        subprocess.run([*maker, "--size", "real", *given], check=True, stdout=subprocess.DEVNULL)
    return str(out)


def main() -> int:
    """Run the parts, print the table; 0 where each gave its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--model", help="a folder or a hub's name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, default=ROOT / ".benchmark" / "gpu_check")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--rows", type=int, default=16_384, help="texts of the encoder's parts")
    parser.add_argument("--minutes", type=float, default=9.0, help="for each part")
    given = parser.parse_args()
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("gpu_check: torch sees no GPU here; --device cpu tries it", file=sys.stderr)
            return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    check = Check(
        given.device, given.model or made_model(given.folder), given.folder, given.records,
        given.rows, given.minutes * 60,
    )  # fmt: skip
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.part or PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            results[name] = {"rows": PARTS[name](check)}
        except (PartError, OSError, ValueError, LookupError) as error:
            results[name] = {"problem": f"{error}" or type(error).__name__}
        given.out.write_text(json.dumps(results, indent=1))
    for name, result in results.items():
        missing = [(name, f"not measured: {result.get('problem')}")]
        for what, measured in result.get("rows", missing):
            print(f"| {what} | {measured} | `gpu_check.py --part {name}` |")
    return 1 if any("problem" in results[name] for name in given.part or PARTS) else 0


if __name__ == "__main__":
    sys.exit(main())
