"""What people use today, called as well as it can be. Only `benchmark` imports it.

python -m danbooru_index.benchmark.baselines DUMP.jsonl MODEL OUT cpu|cuda      the FlagEmbedding +
Chroma script
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from danbooru_index.errors import UsageError, as_model_error
from danbooru_index.model.weights import complete_weights

BATCH_SIZES = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 128, 256, 512, 1024, 2048, 4096)}
DEFAULT_BATCH_SIZE = 256
SWEEP_TEXTS = {"cpu": 256, "cuda": 8192}
SCRIPT_BATCH = 32


class FlagEmbedding:
    """`BGEM3FlagModel.encode`, all three outputs, no progress bar, at the fastest batch size."""

    def __init__(self, path: str, device: str, max_length: int = 512) -> None:
        from FlagEmbedding import BGEM3FlagModel

        module = import_module(BGEM3FlagModel.__module__)
        # no progress bar
        vars(module).update(tqdm=lambda rows, **_: rows, trange=lambda *bounds, **_: range(*bounds))
        with as_model_error(f"{path}: FlagEmbedding cannot load this model ({{}})"):
            self._model = BGEM3FlagModel(
                path, use_fp16=device == "cuda", devices=device, trust_remote_code=False
            )
            complete_weights(self._model.model, Path(path))
        self._max_length = max_length
        self._device, self._sizes, self._swept_texts = (
            device,
            BATCH_SIZES[device],
            SWEEP_TEXTS[device],
        )
        self.batch_size = self._sizes[0]
        self.swept: dict[int, float] = {}

    def sweep(self, texts: list[str]) -> None:
        """Find the fastest batch size on the first texts; on a GPU this warms up every size."""
        self.encode(texts[:32])
        for size in self._sizes:
            self.batch_size = size
            if self._device == "cuda":
                self.encode(texts[:size])
            started = time.perf_counter()
            self.encode(texts[: self._swept_texts])
            self.swept[size] = time.perf_counter() - started
        self.batch_size = min(self.swept, key=lambda size: self.swept[size])

    def encode(
        self, texts: list[str], call: int | None = None, batch_size: int | None = None
    ) -> dict[str, Any]:
        """The outputs of the last call; `call`: how many texts a call gets (default all), in
        batches of `batch_size` (default: the best found).
        """
        outputs: dict[str, Any] = {}
        for start in range(0, len(texts), call or len(texts)):
            outputs = self._model.encode(
                texts[start : start + (call or len(texts))],
                batch_size=batch_size or self.batch_size,
                max_length=self._max_length,
                return_dense=True,
                return_sparse=True,
                return_colbert_vecs=True,
            )
        return outputs


def chroma_script(dump: Path, model: str, out: Path, device: str) -> dict[str, float]:
    """What users run today: dense vectors, 32 texts a call, into Chroma; seconds and records."""
    started = time.perf_counter()
    try:
        import chromadb
    except ImportError:
        raise UsageError(
            "the comparison with Chroma needs it: pip install -c constraints.txt -e '.[benchmark]'"
        ) from None
    from FlagEmbedding import BGEM3FlagModel

    embedder = BGEM3FlagModel(model, use_fp16=True, devices=device)
    complete_weights(embedder.model, Path(model))
    collection = chromadb.PersistentClient(str(out)).get_or_create_collection(
        "tags", metadata={"hnsw:space": "cosine"}
    )
    ready = time.perf_counter()
    total = 0
    for records in _script_batches(dump, SCRIPT_BATCH):
        texts = [record["text"] for record in records]
        vectors = embedder.encode(texts, batch_size=SCRIPT_BATCH, max_length=512)["dense_vecs"]
        ids = [record["id"] for record in records]
        collection.add(ids=ids, embeddings=vectors.tolist(), documents=texts)
        total += len(records)
    return {"records": total, "startup": ready - started, "seconds": time.perf_counter() - ready}


def _script_batches(dump: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    with dump.open(encoding="utf-8") as lines:
        for line in lines:
            batch.append(json.loads(line))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def run_script() -> None:
    """Run the script in a process of its own; the last line is JSON."""
    dump, model, out, device = sys.argv[1:5]
    saved = os.dup(1)
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
        result = chroma_script(Path(dump), model, Path(out), device)
    os.write(saved, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    run_script()
