"""What a checkpoint's files hold, known before anything is built: every layout that people have
works, or is refused.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from processes import ROOT, one_line, run_cli
from safetensors.torch import load_file, save_file

from danbooru_index.errors import ModelError
from danbooru_index.model.checkpoint import check_model, model_id, resolve_model
from danbooru_index.model.checkpoint_files import read_settings
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tensor_files import read_shapes
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.model.weights import backbone_shapes

TEXTS = ["a", "school uniform", "穿水手服的女孩"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2271064456\n"
HEADS = ("sparse_linear", "colbert_linear")


def outputs(folder):
    return Encoder(str(folder)).encode(Tokenizer(str(folder), 64)(TEXTS))


@pytest.fixture(scope="module")
def expected(checkpoint):
    return outputs(checkpoint)


@pytest.fixture
def model(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def rewrite(folder, change):
    """The weights anew, by a function of all tensors."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def prefixed(folder, prefix):
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def as_torch(folder, wrap=lambda tensors: tensors, **options):
    torch.save(
        wrap(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin", **options
    )
    (folder / "model.safetensors").unlink()


def heads_inside(folder, prefix=""):
    heads = {
        f"{h}.{part}": value
        for h in HEADS
        for part, value in torch.load(folder / f"{h}.pt").items()
    }
    rewrite(
        folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()} | heads
    )
    for head in HEADS:
        (folder / f"{head}.pt").unlink()


def in_parts(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number, some in enumerate((list(tensors)[:10], list(tensors)[10:]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in some}, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(some, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


def linked(folder):
    """As the hub's cache keeps it: links to blobs."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))


def with_pooling(folder, **how):
    kinds = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
    modules = [{"idx": 0, "name": "0", "path": "", "type": kinds[0]}]
    modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": kinds[1]}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, **how})
    )


def settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer_settings(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer_file(folder, change):
    """`tokenizer.json` anew, loaded as it stands (the class of XLM-R makes a part of it itself)."""
    tokenizer_settings(folder, tokenizer_class="PreTrainedTokenizerFast")
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


WORKS = {
    "safetensors": lambda folder: None,
    "pytorch_model.bin": as_torch,
    "pytorch_model.bin before torch 1.6": lambda f: as_torch(
        f, _use_new_zipfile_serialization=False
    ),
    "a head before torch 1.6": lambda f: torch.save(
        torch.load(f / "colbert_linear.pt"),
        f / "colbert_linear.pt",
        _use_new_zipfile_serialization=False,
    ),
    "in parts": in_parts,
    "links": linked,
    "DDP": lambda f: prefixed(f, "module."),
    "FlagEmbedding's own class": lambda f: prefixed(f, "model."),
    "both": lambda f: prefixed(f, "module.model."),
    "torch.compile": lambda f: prefixed(f, "_orig_mod."),
    "sentence-transformers' own class": lambda f: prefixed(f, "0.auto_model."),
    "a class with a head": lambda f: (
        prefixed(f, "roberta."),
        rewrite(f, lambda t: t | {"lm_head.bias": torch.zeros(5)}),
    ),
    "DDP, pytorch_model.bin": lambda f: as_torch(
        f, lambda t: {f"module.{name}": v for name, v in t.items()}
    ),
    "DDP, in parts": lambda f: (prefixed(f, "module."), in_parts(f)),
    "heads inside": heads_inside,
    "heads inside, with a prefix": lambda f: heads_inside(f, "model."),
    "heads inside, by DDP": lambda f: (heads_inside(f, "model."), prefixed(f, "module.")),
    "a sentence-transformers folder": lambda f: with_pooling(f, pooling_mode_cls_token=True),
    "without a pooler": lambda f: rewrite(
        f, lambda t: {n: v for n, v in t.items() if not n.startswith("pooler")}
    ),
    "positions kept, as by transformers 4": lambda f: rewrite(
        f, lambda t: t | {"embeddings.position_ids": torch.arange(8194)[None]}
    ),
}


@pytest.mark.parametrize("layout", WORKS)
def test_a_layout_that_works_gives_the_same_outputs(layout, model, expected):
    WORKS[layout](model)
    assert resolve_model(str(model)).model_id
    found = outputs(model)
    assert np.abs(found.dense - expected.dense).max() < 1e-6
    assert np.abs(found.colbert - expected.colbert).max() < 1e-6
    assert found.sparse_ids.tolist() == expected.sparse_ids.tolist()
    assert np.abs(found.sparse_weights - expected.sparse_weights).max() < 1e-5


@pytest.mark.parametrize(("kind", "least"), [(torch.float16, 1e-5), (torch.bfloat16, 1e-4)])
def test_weights_in_half_precision(kind, least, model, expected):
    rewrite(model, lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()})
    check_model(model)
    assert (1 - (outputs(model).dense * expected.dense).sum(1)).max() < least


def without(part):
    return lambda f: rewrite(
        f, lambda t: {name: value for name, value in t.items() if part not in name}
    )


def cut(name, to):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:to])

    return change


def pointer(name):
    return lambda folder: (folder / name).write_text(POINTER)


def smaller_vocabulary(folder):
    rewrite(
        folder,
        lambda t: {
            n: v[:1000] if n.endswith("word_embeddings.weight") else v for n, v in t.items()
        },
    )
    settings(folder, vocab_size=1000)


REFUSED = {
    "a layer is missing": (
        without("layer.1."),
        r"missing encoder.layer.1.attention.self.query.weight, .* and 12 more",
    ),
    "a bias is missing": (
        without("embeddings.LayerNorm.bias"),
        "missing embeddings.LayerNorm.bias",
    ),
    "a layer too many": (
        lambda f: settings(f, num_hidden_layers=1),
        r"unexpected encoder.layer.1.attention.output.LayerNorm.bias",
    ),
    "an unknown prefix": (
        lambda f: prefixed(f, "student."),
        "student.embeddings.word_embeddings.weight: which of them",
    ),
    "two models in one": (
        lambda f: rewrite(f, lambda t: t | {f"module.{n}": v.clone() for n, v in t.items()}),
        "which of them is the model",
    ),
    "no backbone at all": (
        without("embeddings.word"),
        "no tensor embeddings.word_embeddings.weight; it has",
    ),
    "a stranger": (
        lambda f: rewrite(f, lambda t: t | {"adapter.down": torch.ones(2)}),
        "adapter.down: tensors that",
    ),
    "integers": (
        lambda f: rewrite(f, lambda t: {n: v.to(torch.int8) for n, v in t.items()}),
        r"word_embeddings.weight is \[I8, 2001, 64\] instead of \[2001, 64\]",
    ),
    "another vocabulary": (
        lambda f: settings(f, vocab_size=3000),
        r"word_embeddings.weight is \[2001, 64\] instead of \[3000, 64\]",
    ),
    "a vocabulary smaller than the tokenizer's": (
        smaller_vocabulary,
        r"its tokenizer has 2,001 entries, its model embeddings for 1,000",
    ),
    "a narrow head": (
        lambda f: torch.save(torch.nn.Linear(64, 32).state_dict(), f / "colbert_linear.pt"),
        (
            r"colbert_linear.weight is \[32, 64\] instead of \[64, 64\], colbert_linear.bias is"
            r" \[32\] instead of \[64\]"
        ),
    ),
    "a head with other names": (
        lambda f: torch.save({"linear.weight": torch.ones(64, 64)}, f / "colbert_linear.pt"),
        (
            "missing colbert_linear.weight, colbert_linear.bias; unexpected"
            " colbert_linear.linear.weight"
        ),
    ),
    "one head": (
        lambda f: (f / "sparse_linear.pt").unlink(),
        "sparse_linear.pt missing: without its heads",
    ),
    "a head as a module": (
        lambda f: torch.save(torch.nn.Linear(64, 64), f / "colbert_linear.pt"),
        "colbert_linear.pt: holds more than tensors",
    ),
    "a training's state": (
        lambda f: as_torch(f, lambda t: {"state_dict": t, "epoch": 3}),
        "pytorch_model.bin: holds other things than named tensors",
    ),
    "weights by git-lfs": (
        pointer("model.safetensors"),
        "model.safetensors: git-lfs pointers.*git lfs pull",
    ),
    "a head by git-lfs": (
        pointer("sparse_linear.pt"),
        "sparse_linear.pt: git-lfs pointers.*git lfs pull",
    ),
    "a tokenizer by git-lfs": (
        pointer("tokenizer.json"),
        "tokenizer.json: git-lfs pointers.*git lfs pull",
    ),
    "weights cut short": (
        cut("model.safetensors", 5000),
        "model.safetensors: cannot be read as tensors",
    ),
    "a head cut short": (
        cut("sparse_linear.pt", 500),
        "sparse_linear.pt: cannot be read as tensors",
    ),
    "a tokenizer cut short": (cut("tokenizer.json", 3000), "tokenizer.json: not a tokenizer"),
    "a part is missing": (
        lambda f: (in_parts(f), (f / "model-00002-of-00002.safetensors").unlink()),
        "index.json: names model-00002-of-00002.safetensors, which is not there",
    ),
    "an index that is none": (
        lambda f: (in_parts(f), (f / "model.safetensors.index.json").write_text("[]")),
        "index.json: cannot be read",
    ),
    "an adapter": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "an adapter .adapter_config.json.",
    ),
    "sentence-transformers, one folder down": (
        lambda f: (
            with_pooling(f),
            (f / "0_Transformer").mkdir(),
            (f / "config.json").rename(f / "0_Transformer" / "config.json"),
        ),
        "no configuration .config.json.: .*0_Transformer in it may be one",
    ),
    "pooled by the mean": (
        lambda f: with_pooling(f, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True),
        "config.json: pools by mean_tokens",
    ),
    "a decoder": (lambda f: settings(f, is_decoder=True), "config.json: is_decoder True"),
    "weights of another name": (
        lambda f: settings(f, transformers_weights="other.safetensors"),
        "config.json: transformers_weights",
    ),
    "code of its own": (
        lambda f: settings(f, auto_map={"AutoModel": "m.M"}),
        "config.json: auto_map: .* no code",
    ),
    "quantised": (
        lambda f: settings(f, quantization_config={"bits": 4}),
        "config.json: quantization_config",
    ),
    "heads that do not divide it": (
        lambda f: settings(f, num_attention_heads=5),
        "5 heads do not divide 64 values",
    ),
    "no epsilon": (
        lambda f: settings(f, layer_norm_eps=None),
        "layer_norm_eps and pad_token_id: numbers",
    ),
    "no padding": (
        lambda f: settings(f, pad_token_id=None),
        "layer_norm_eps and pad_token_id: numbers",
    ),
    "another tokenizer's class": (
        lambda f: tokenizer_settings(f, tokenizer_class="BertTokenizer"),
        "tokenizer_class is 'BertTokenizer'",
    ),
    "a tokenizer of another name": (
        lambda f: tokenizer_settings(f, fast_tokenizer_files=["tokenizer.4.0.0.json"]),
        "tokenizer_config.json: fast_tokenizer_files",
    ),
    "no kinds of tokens": (
        lambda f: settings(f, type_vocab_size=None),
        "config.json: type_vocab_size: a positive number",
    ),
    "a tensor without a name": (
        lambda f: as_torch(f, lambda t: t | {3: torch.ones(2)}),
        "pytorch_model.bin: holds other things than named tensors",
    ),
    "ids that are no numbers": (
        lambda f: tokenizer_file(
            f, lambda t: t.update(model={"vocab": {"a": "x"}}, added_tokens=[])
        ),
        r"tokenizer.json: not a tokenizer .TypeError: its ids are no numbers",
    ),
    "numbers that transformers would make up": (
        lambda f: (f / "config.json").write_text(
            '{"model_type": "xlm-roberta", "hidden_size": 64, "vocab_size": 2001}'
        ),
        (
            "config.json: intermediate_size and max_position_embeddings and num_attention_heads and"
            " num_hidden_layers"
        ),
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(fault, model):
    change, words = REFUSED[fault]
    change(model)
    with pytest.raises(ModelError, match=words) as refused:
        resolve_model(str(model))
    assert "weights_only" not in str(refused.value)
    assert len(str(refused.value)) < 500


UNLIKE = {
    "no <s> and </s>": (
        lambda f: tokenizer_file(f, lambda t: t.update(post_processor=None)),
        r"puts \[\d+\] before and \[\d+\] after a text",
    ),
    "no special token named": (
        lambda f: (
            (f / "tokenizer_config.json").write_text(
                '{"tokenizer_class": "PreTrainedTokenizerFast"}'
            )
            and (f / "special_tokens_map.json").unlink()
        ),
        "names no cls_token, eos_token, pad_token, unk_token",
    ),
    "another first token": (
        lambda f: (
            tokenizer_settings(f, tokenizer_class="PreTrainedTokenizerFast", cls_token="</s>"),
            (f / "special_tokens_map.json").unlink(),
        ),
        r"puts \[0\] before and \[2\] after a text",
    ),
    "another padding": (
        lambda f: settings(f, pad_token_id=0),
        "pads with 1; .* and 0 .config.json.",
    ),
    "no unknown token": (
        lambda f: tokenizer_file(f, lambda t: t["model"].update(unk_id=None)),
        "cannot take an unknown character",
    ),
    "next to no entries": (
        lambda f: tokenizer_file(
            f,
            lambda t: (
                t["model"].update(vocab=t["model"]["vocab"][:20]),
                t.update(added_tokens=t["added_tokens"][:4]),
            ),
        ),
        "its tokenizer has 21 entries, its model embeddings for 2,001",
    ),
}


@pytest.mark.parametrize("fault", UNLIKE)
def test_a_tokenizer_that_does_not_do_as_the_model_was_trained_is_refused(fault, model):
    """Each gave vectors that look like any others."""
    change, words = UNLIKE[fault]
    change(model)
    with pytest.raises(ModelError, match=words):
        Tokenizer(str(model), 64)


def test_the_tensors_that_are_asked_for_are_those_of_transformers(checkpoint):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    model = XLMRobertaModel(XLMRobertaConfig.from_pretrained(checkpoint), add_pooling_layer=False)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert backbone_shapes(read_settings(checkpoint)) == theirs


def test_a_check_needs_no_torch_and_agrees_with_it(checkpoint, tmp_path):
    """A second of every build's start. What is in a file says torch where the two could differ."""
    script = f"""
import sys
from pathlib import Path
from danbooru_index.model.checkpoint import check_model
check_model(Path({str(checkpoint)!r}))
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["False", "False"]
    kinds = [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.int64,
        torch.bool,
    ]
    state = {f"t{number}": torch.ones(number + 1, 2).to(kind) for number, kind in enumerate(kinds)}
    state["scalar"] = torch.tensor(1.0)
    state["slice"] = torch.ones(8, 8)[2:4]
    torch.save(state, tmp_path / "a.bin")
    found = read_shapes(tmp_path / "a.bin")
    assert {
        name: tuple(s for s in shape if isinstance(s, int)) for name, shape in found.items()
    } == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert [isinstance(found[f"t{n}"][0], str) for n in range(7)] == [False] * 4 + [True] * 3


def test_an_id_that_was_written_down_before_is_the_same_id(checkpoint, tmp_path):
    """The id is a hash of names and contents of files: an index keeps its model whatever else is
    checked now.
    """
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(path.name for path in checkpoint.iterdir()):
        content = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    assert model_id(checkpoint) == digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["build", "finetune", "benchmark", "doctor"])
def test_every_command_refuses_it_before_ray_starts(verb, model, sample_shards, tmp_path):
    """A copy without a layer; `RAY_TMPDIR` is where Ray would have left its session."""
    without("layer.1.")(model)
    words = {
        "build": ["build", sample_shards, "--index", tmp_path / "index", "--device", "cpu"],
        "finetune": ["finetune", tmp_path / "pairs.jsonl", "--out", tmp_path / "out"],
        "benchmark": ["benchmark"],
        "doctor": ["doctor", "--device", "cpu", "--records", "10"],
    }[verb]
    (tmp_path / "ray").mkdir()
    answer = run_cli(*words, "--model", model, env={"RAY_TMPDIR": str(tmp_path / "ray")})
    if verb == "doctor":  # it goes on, and looks at Ray too
        assert answer.returncode == 1
        assert "missing encoder.layer.1" in answer.stdout
        return
    assert "missing encoder.layer.1" in one_line(answer, 1)
    assert os.listdir(tmp_path / "ray") == []
