"""A model loaded without FlagEmbedding is the same model, to the bit; or it is left to it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import MIXED_TEXTS, Shape, make_checkpoint

from danbooru_index.choices import Device, Precision
from danbooru_index.model.checkpoint import BUNDLED_FOLDER
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.plain_model import load_plain_model
from danbooru_index.model.tokenizer import Tokenizer, _plain_tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("plain") / "model",
        Shape(layers=2, hidden=32, heads=2, intermediate=64),
    )


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("bundled", [False, True])
def test_the_numbers_are_the_same_to_the_bit(small, precision, bundled):
    path = str(BUNDLED_FOLDER if bundled else small)
    batch = Tokenizer(path, 64)(MIXED_TEXTS)
    assert load_plain_model(path, "cpu", precision) is not None
    expected = Encoder(path, Device.CPU, precision).encode(batch)
    found = Encoder(path, Device.CPU, precision, plain=True).encode(batch)
    for name in ("dense", "sparse_ids", "sparse_weights", "sparse_lengths", "colbert"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("bundled", [False, True])
def test_the_tokens_are_the_same(small, bundled):
    path = str(BUNDLED_FOLDER if bundled else small)
    expected, found = Tokenizer(path, 64)(MIXED_TEXTS), Tokenizer(path, 64, plain=True)(MIXED_TEXTS)
    assert np.array_equal(found.token_ids, expected.token_ids)
    assert (found.special, found.truncated) == (expected.special, expected.truncated)


def test_what_may_be_another_model_is_left_to_flagembedding(small, tmp_path):
    shutil.copytree(small, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {"hidden_act": "relu"}))
    assert load_plain_model(str(tmp_path / "model"), "cpu", Precision.FP32) is None


def test_a_tokenizer_with_settings_of_its_own_is_left_to_transformers(tmp_path):
    shutil.copytree(BUNDLED_FOLDER, tmp_path / "model")
    assert _plain_tokenizer(tmp_path / "model") is not None
    path = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for change in (
        {"tokenizer_class": "XLMRobertaTokenizer"},
        {"truncation_side": "left"},
        {"cls_token": {"content": "<s>"}},
    ):
        path.write_text(json.dumps(settings | change))
        assert _plain_tokenizer(tmp_path / "model") is None


LOADED = """
import json, sys
from danbooru_index.choices import Device, Precision
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer
path = sys.argv[1]
Encoder(path, plain=True).encode(Tokenizer(path, 64, plain=True)(["cat ears"]))
print(json.dumps([name for name in ("FlagEmbedding", "transformers", "datasets") if name in sys.modules]))
"""


def test_a_query_imports_neither_flagembedding_nor_transformers():
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(BUNDLED_FOLDER)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == []
