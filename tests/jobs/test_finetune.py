"""Fine-tuning end to end on a small checkpoint: what it writes, that it learns, that it goes on
after a kill.
"""

import json
import shutil
import signal
import time

import pytest
import torch
from processes import CLI, one_line, run_cli, run_here, running
from safetensors.torch import load_file, save_file

from danbooru_index.choices import Device
from danbooru_index.config import BuildConfig
from danbooru_index.errors import UsageError
from danbooru_index.model.checkpoint import model_id
from danbooru_index.pipeline.build import build
from danbooru_index.training.finetune import STATE, finetune
from danbooru_index.training.finetune_config import FinetuneConfig
from danbooru_index.training.pairs import FAILURE
from danbooru_index.training.worker_group import _failure

SETTINGS = ("--lr", "2e-3", "--batch-size", "16", "--group-size", "3", "--device", "cpu")


@pytest.fixture(scope="module")
def base(checkpoint, tmp_path_factory):
    """The small checkpoint with its weights in half precision, as m3-mini and many others
    are kept.
    """
    path = tmp_path_factory.mktemp("half") / "model"
    shutil.copytree(checkpoint, path)
    weights = load_file(path / "model.safetensors")
    save_file(
        {name: weight.half() for name, weight in weights.items()},
        path / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return path


@pytest.fixture(scope="module")
def index(sample_shards, base, tmp_path_factory, ray_session):
    root = tmp_path_factory.mktemp("base") / "index"
    build(
        BuildConfig(shards=str(sample_shards), index=str(root), model=str(base), device=Device.CPU)
    )
    return root


@pytest.fixture(scope="module")
def dump(tmp_path_factory, sample):
    """A sixth of the sample: some 350 pairs."""
    path = tmp_path_factory.mktemp("dump") / "tags.jsonl"
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in sample[::6]),
        encoding="utf-8",
    )
    return path


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_short_training_from_pairs_alone_ends_with_a_model(
    base, sample, tmp_path, ray_session, capfd
):
    """Four steps, with negatives of its own: no index is needed."""
    texts = [record["text"] for record in sample[:64]]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"query": record["tag"], "pos": [text], "neg": [texts[(i + 7) % 64]]}) + "\n"
            for i, (record, text) in enumerate(zip(sample, texts, strict=False))
        )
    )
    out = tmp_path / "tuned"
    said = run_here(capfd, "finetune", pairs, "--model", base, "--out", out, *SETTINGS, "--json")
    report = json.loads(said)
    assert report["steps"] >= 3
    assert report["model_id"] == model_id(out) != report["base_id"] == model_id(base)
    before, after = (
        torch.load(folder / "sparse_linear.pt", weights_only=True)["weight"]
        for folder in (base, out)
    )
    assert float((before - after).abs().max()) > 0


@pytest.mark.long
@pytest.mark.release
@pytest.mark.ray
@pytest.mark.slow
def test_a_training_is_killed_goes_on_and_ends_with_a_model(
    dump, index, base, sample, tmp_path, capfd
):
    held_out = tmp_path / "queries.jsonl"
    name = next(record["aliases"][0] for record in sample[::6] if record["aliases"])
    held_out.write_text(
        json.dumps({"query": name.upper(), "relevant": ["x"]}, ensure_ascii=False) + "\n"
    )
    out = tmp_path / "tuned"
    arguments = [
        "finetune",
        dump,
        "--index",
        index,
        "--out",
        out,
        "--held-out",
        held_out,
        "--save-steps",
        "6",
        *SETTINGS,
    ]
    with running([*CLI, *map(str, arguments)]) as process:
        end = time.monotonic() + 150
        while not list((out / STATE).glob("checkpoints/checkpoint-*/complete")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    other = FinetuneConfig(str(dump), str(out), index=str(index), held_out=(str(held_out),), seed=5)
    with pytest.raises(UsageError, match="holds an unfinished training with other settings"):
        finetune(other)

    done = run_cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["resumed_at"] >= 6
    assert report["resumed_at"] < report["steps"] == (report["pairs"] // 16)
    assert report["held_out"] == 1
    assert report["loss"][1] < report["loss"][0]
    assert len(report["recall"]) == 2  # of nine pairs: too few to say which is more
    assert report["model_id"] == model_id(out) != report["base_id"] == model_id(base)
    assert not (out / STATE).exists()
    assert name not in (out / "README.md").read_text(encoding="utf-8")
    assert report["model_id"] in (out / "README.md").read_text(encoding="utf-8")
    assert (out / "curves.svg").read_text(encoding="utf-8").startswith("<?xml")

    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    changed = {}
    for head in ("colbert_linear.pt", "sparse_linear.pt"):
        before, after = (torch.load(folder / head, weights_only=True) for folder in (base, out))
        changed[head] = float((before["weight"] - after["weight"]).abs().max())
    assert min(changed.values()) > 0  # all three outputs were trained
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {
        torch.float32
    }

    # done: says so, and does nothing
    assert json.loads(run_here(capfd, *arguments, "--json")) == report
    with pytest.raises(UsageError, match="was tuned otherwise"):
        finetune(other)
    texts = [record["text"] for record in sample[::6]]
    # of the texts set aside: near to the share of all, or of these
    before, after = report["sparse"]
    assert weighted_share(base, texts) == pytest.approx(before, abs=0.3)
    assert weighted_share(out, texts) == pytest.approx(after, abs=0.3)


def weighted_share(model, texts):
    """The share of texts with sparse weights, by FlagEmbedding, which must load the model."""
    from FlagEmbedding import BGEM3FlagModel

    embedder = BGEM3FlagModel(str(model), use_fp16=False, devices="cpu")
    outputs = embedder.encode(
        texts, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    assert outputs["dense_vecs"].shape == (len(texts), 64)
    assert len(outputs["colbert_vecs"]) == len(texts)
    return sum(map(bool, outputs["lexical_weights"])) / len(texts)


def test_the_sparse_output_while_training_is_flagembeddings_own(checkpoint):
    """Values and gradients of [texts, vocabulary] against those made through [texts, tokens,
    vocabulary].
    """
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner
    from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
    from transformers import AutoTokenizer

    from danbooru_index.training.trainer import UnifiedModel

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer(
        ["hair over one eye, hair", "ツインテール", "a a b"], padding=True, return_tensors="pt"
    )
    outputs, gradients = [], []
    for kind in (EncoderOnlyEmbedderM3Model, UnifiedModel):
        model = kind(EncoderOnlyEmbedderM3Runner.get_model(str(checkpoint)), tokenizer=tokenizer)
        model.train()
        torch.manual_seed(0)
        hidden = torch.randn(*batch["input_ids"].shape, 64)
        rows = model._sparse_embedding(hidden, batch["input_ids"])
        (rows * torch.arange(rows.shape[1])).sum().backward()
        outputs.append(rows.detach())
        gradients.append(model.sparse_linear.weight.grad)
    assert outputs[0].count_nonzero() > 10
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (
            {"memory": True, "error": "OutOfMemoryError: CUDA out of memory"},
            "lower --batch-size, then --group-size",
        ),
        ({"memory": False, "error": "ValueError: x"}, "goes on from the last checkpoint"),
    ],
)
def test_a_failed_training_says_what_to_do(tmp_path, note, words):
    (tmp_path / FAILURE).write_text(json.dumps(note))
    message = str(_failure(tmp_path, RuntimeError("worker 0 failed")))
    assert words in message
    assert note["error"] in message


def test_memory_that_runs_out_in_the_worker_is_noted(tmp_path, monkeypatch):
    from danbooru_index.training import trainer as training

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(training, "_train", full)
    with pytest.raises(torch.OutOfMemoryError):
        training.train({"state": str(tmp_path)})
    assert "--batch-size" in str(_failure(tmp_path, RuntimeError("worker 0 failed")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0}, "--lr must be positive"),
        ({"batch_size": -1}, "--batch-size must be positive"),
        ({"index": None, "model": None}, "pass --index"),
        ({"ranks": (5, 2)}, "--ranks takes two ranks"),
        ({"mined_share": 1.5}, "--mined-share"),
        ({"num_gpus": 0}, "--num-gpus"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(settings, words):
    with pytest.raises(UsageError, match=words):
        FinetuneConfig(**({"pairs": "p", "out": "o", "index": "i"} | settings))


def test_wrong_usage_is_one_line(tmp_path, checkpoint):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "a", "pos": ["x"], "neg": ["y"]}\n')
    own = ("--model", checkpoint, "--device", "cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not lose me")
    assert "not empty" in one_line(run_cli("finetune", pairs, "--out", tmp_path / "full", *own), 2)
    alone = tmp_path / "alone.jsonl"
    alone.write_text('{"query": "a", "pos": ["x"]}\n')
    line = one_line(run_cli("finetune", alone, "--out", tmp_path / "o", *own), 2)
    assert "1 pairs have no negatives: pass --index" in line
    assert "--group-size 1" in line
    assert "such as 2-20" in one_line(
        run_cli("finetune", pairs, "--out", tmp_path / "o", *own, "--ranks", "x"), 2
    )
