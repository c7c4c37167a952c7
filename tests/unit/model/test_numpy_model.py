"""A small model by NumPy alone: the encoder's numbers, without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import vault
from checkpoints import MIXED_TEXTS, Shape, make_checkpoint
from safetensors.torch import load_file, save_file

from danbooru_index.choices import Device, Precision
from danbooru_index.model import numpy_model
from danbooru_index.model.checkpoint import BUNDLED_FOLDER
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.numpy_model import NumpyEncoder
from danbooru_index.model.tensor_files import NotForNumPyError, load_arrays, load_tensors
from danbooru_index.model.tokenizer import Tokenizer


@pytest.fixture
def small(tmp_path):
    shape = Shape(layers=2, hidden=vault.DIM, heads=2, intermediate=64)
    return make_checkpoint(tmp_path / "model", shape)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("bundled", [False, True])
def test_the_numbers_are_the_encoders(small, bundled, projected):
    path = str(BUNDLED_FOLDER if bundled else small)
    batch = Tokenizer(path, 64)(MIXED_TEXTS)
    dim = json.loads((BUNDLED_FOLDER if bundled else small).joinpath("config.json").read_text())
    matrix = np.random.default_rng(0).normal(size=(dim["hidden_size"], 8)).astype(np.float32)
    matrix = matrix if projected else None
    expected = Encoder(path, Device.CPU, Precision.FP32, projection=matrix).encode(batch)
    found = NumpyEncoder.load(path, matrix).encode(batch)
    for name in ("sparse_ids", "sparse_lengths", "colbert_lengths", "non_finite"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    for name in ("dense", "sparse_weights", "colbert"):
        assert np.allclose(getattr(found, name), getattr(expected, name), atol=2e-5), name


def test_the_error_function_is_the_same_with_scipy_and_without(monkeypatch):
    values = np.linspace(-6, 6, 1001, dtype=np.float32)
    import scipy.special

    by_scipy = numpy_model._erf(values)
    monkeypatch.delitem(sys.modules, "scipy.special")
    assert np.allclose(numpy_model._erf(values), by_scipy, atol=1e-7)
    assert scipy.special.erf(0) == 0


def test_arrays_are_the_tensors_of_a_file(small, tmp_path):
    for name in ("model.safetensors", "colbert_linear.pt", "sparse_linear.pt"):
        arrays, tensors = load_arrays(small / name), load_tensors(small / name)
        assert arrays.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert np.array_equal(arrays[key], tensor.numpy()), key
    view = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": view.T, "b": view[1]}, tmp_path / "views.pt")
    torch.save({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "bf16.pt")
    (tmp_path / "no.pt").write_bytes(b"PK no archive")
    for name in ("views.pt", "bf16.pt", "no.pt"):
        with pytest.raises(NotForNumPyError):
            load_arrays(tmp_path / name)


def test_what_it_does_not_know_is_left_to_torch(small, tmp_path, monkeypatch):
    tensors = {k: v.bfloat16() for k, v in load_file(small / "model.safetensors").items()}
    shutil.copytree(small, tmp_path / "bf16")
    save_file(tensors, tmp_path / "bf16" / "model.safetensors")
    assert NumpyEncoder.load(str(tmp_path / "bf16")) is None
    monkeypatch.setattr(numpy_model, "LARGEST_BYTES", 1000)
    assert NumpyEncoder.load(str(small)) is None


def test_a_hybrid_query_imports_neither_torch_nor_lance(small, tmp_path):
    """Each takes longer than the search."""
    vault.build(tmp_path / "index", vault.shard_names(1), path=str(small))
    code = (
        "import sys\n"
        "from danbooru_index.search.tag_index import TagIndex\n"
        f"with TagIndex.open({str(tmp_path / 'index')!r}) as index:\n"
        "    hits = index.search('1girl')\n"
        "assert hits[0].dense is not None\n"
        "names = {'torch', 'lance', 'lancedb', 'ray', 'pandas'}\n"
        "print(sorted(names & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
