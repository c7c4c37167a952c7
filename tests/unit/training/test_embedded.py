"""m3-mini: it loads as BGE-M3 does, fits in the package, and finds tags; the parts of its recipe do
what they say.
"""

import gzip
import json

import numpy as np
import pytest
import torch
from checkpoints import SHARED
from processes import one_line, run_cli

from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.fields import parse_line
from danbooru_index.model.checkpoint import (
    BUNDLED_FOLDER,
    BUNDLED_MODEL,
    longest_text,
    resolve_model,
)
from danbooru_index.model.encoder import Encoder
from danbooru_index.model.tokenizer import Tokenizer
from danbooru_index.training import m3_mini, mini_vectors
from danbooru_index.training.m3_mini import _begin_work, make_mini
from danbooru_index.training.mini_tokenizer import load_mini_tokenizer, token_rows, train_tokenizer
from danbooru_index.training.mini_vectors import MiniRecipe, with_prior, with_rarity
from danbooru_index.training.mini_weights import write_base
from danbooru_index.training.pairs import normal

LARGEST = 16_000_000
WORDS = 64 - mini_vectors.RESERVED


def test_it_is_small_and_whole():
    sizes = {path.name: path.stat().st_size for path in BUNDLED_FOLDER.iterdir()}
    assert sum(sizes.values()) <= LARGEST
    assert {
        "model.safetensors",
        "sparse_linear.pt",
        "colbert_linear.pt",
        "tokenizer.json",
        "README.md",
    } <= sizes.keys()
    assert longest_text(resolve_model(BUNDLED_MODEL)) == 512


def test_flagembedding_loads_it_as_it_is(sample):
    from FlagEmbedding import BGEM3FlagModel

    texts = [record["text"] for record in sample[:32]]
    theirs = BGEM3FlagModel(str(BUNDLED_FOLDER), use_fp16=False, devices="cpu").encode(
        texts, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    ours = Encoder(str(BUNDLED_FOLDER)).encode(Tokenizer(str(BUNDLED_FOLDER), 512)(texts))
    np.testing.assert_allclose(ours.dense, theirs["dense_vecs"], atol=1e-5)
    for row in range(len(texts)):
        np.testing.assert_allclose(ours.colbert_row(row), theirs["colbert_vecs"][row], atol=1e-5)
        expected = {int(token): weight for token, weight in theirs["lexical_weights"][row].items()}
        assert ours.sparse_row(row) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_it_finds_tags_by_names_it_was_never_told():
    """The development queries among their own answers and every 20th other record: far above what
    shares words.
    """
    if not SHARED.exists():
        pytest.skip("shared/ is not here")
    queries = [
        json.loads(line)
        for line in (SHARED / "data" / "queries_dev.jsonl").read_text("utf-8").splitlines()
    ]
    wanted = {tag for query in queries for tag in query["relevant"]}
    with gzip.open(SHARED / "data" / "danbooru_tags.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    records = [
        record
        for number, record in enumerate(records)
        if number % 20 == 0 or record["tag"] in wanted
    ]
    encoder, tokenizer = Encoder(str(BUNDLED_FOLDER)), Tokenizer(str(BUNDLED_FOLDER), 512)
    texts = encoder.encode(tokenizer([record["text"] for record in records])).dense
    asked = encoder.encode(tokenizer([query["query"] for query in queries])).dense
    best = np.argsort(-asked @ texts.T, axis=1, kind="stable")[:, :10]
    for kind, floor in (("zh", 0.7), ("ja", 0.8), ("alias", 0.5)):
        found = [
            any(records[row]["tag"] in query["relevant"] for row in rows)
            for query, rows in zip(queries, best, strict=True)
            if query["kind"] == kind
        ]
        assert sum(found) / len(found) > floor, kind


@pytest.fixture(scope="module")
def base(tmp_path_factory, sample):
    """A base model of random token vectors over the sample: what `finetune` would start from."""
    folder = tmp_path_factory.mktemp("base")
    records = [parse_line(json.dumps(record)) for record in sample]
    recipe = MiniRecipe(vocabulary=3000, hidden=64, intermediate=128)
    train_tokenizer(records, ["水手服", "sailor"], folder, recipe.vocabulary)
    torch.manual_seed(0)
    drawn = torch.randn(load_mini_tokenizer(folder).get_vocab_size(), WORDS)
    words = torch.nn.functional.pad(
        torch.nn.functional.layer_norm(drawn, (WORDS,)), (0, mini_vectors.RESERVED)
    )
    texts = [record.text for record in records]
    rows = token_rows(folder, texts)
    vectors = with_rarity(with_prior(folder, words.clone(), records, rows, recipe), rows, recipe)
    write_base(folder, vectors, rows, recipe)
    return folder, words, records, recipe


def test_a_base_model_begins_as_the_mean_of_its_token_vectors(base):
    folder, words, _, _ = base
    tokenizer = Tokenizer(str(folder), 512)
    texts = ["school uniform", "ツインテール", "hair over one eye"]
    dense = Encoder(str(folder)).encode(tokenizer(texts)).dense[:, :WORDS]
    for text, vector in zip(texts, dense, strict=True):
        mean = words[tokenizer([text]).token_ids[1:-1].tolist(), :WORDS].mean(0).numpy()
        cosine = mean @ vector / np.linalg.norm(mean) / np.linalg.norm(vector)
        assert cosine > 0.98


def test_popular_categories_stand_before_others_all_else_equal(base):
    folder, _, records, _ = base
    posts = {}
    for record in records:
        posts.setdefault(record.category, []).append(np.log1p(record.post_count or 0))
    order = sorted(posts, key=lambda name: np.mean(posts[name]))
    tokenizer = Tokenizer(str(folder), 512)
    encoding = Encoder(str(folder)).encode(
        tokenizer(["hair", f"【{order[0]}】hair", f"【{order[-1]}】hair"])
    )
    rare, popular = encoding.dense[1:] @ encoding.dense[0]
    assert popular > rare + 0.05


def test_rare_tokens_weigh_more(base):
    folder, _, records, _ = base
    tokenizer = Tokenizer(str(folder), 512)
    encoding = Encoder(str(folder)).encode(tokenizer([record.text for record in records]))
    weights, seen = {}, {}
    for row in range(len(records)):
        for token, weight in encoding.sparse_row(row).items():
            weights.setdefault(token, []).append(weight)
            seen[token] = seen.get(token, 0) + 1
    tokens = [token for token, count in seen.items() if count >= 3]
    rarity = [-np.log(seen[token]) for token in tokens]
    assert np.corrcoef(rarity, [np.mean(weights[token]) for token in tokens])[0, 1] > 0.8


def test_what_is_held_out_is_in_no_pair(sample):
    records = [parse_line(json.dumps(record)) for record in sample]
    alias = next(record.aliases[0] for record in records if record.aliases)
    training = m3_mini._draw_weights(records, {}, {normal(alias)}, MiniRecipe())
    assert training.weights.sum() == pytest.approx(1)
    assert normal(alias) not in {normal(pair.query) for pair in training.pairs}


def test_a_hub_that_cannot_be_reached_names_the_ways_out(sample_shards, tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    line = one_line(
        run_cli(
            "build",
            sample_shards,
            "--index",
            tmp_path / "i",
            "--model",
            "BAAI/bge-m3",
            "--device",
            "cpu",
            env=env,
        ),
        1,
    )
    for way in ("HF_ENDPOINT", "local folder", "--model m3-mini"):
        assert way in line


def test_what_was_made_of_other_files_is_not_gone_on_with(tmp_path):
    """Old pairs may hold what is held out now."""
    dump, work = tmp_path / "a.jsonl", tmp_path / "m.work"
    dump.write_text("{}")
    _begin_work(work, [dump], MiniRecipe())
    (work / "pairs.jsonl").write_text("old")
    _begin_work(work, [dump], MiniRecipe())
    assert (work / "pairs.jsonl").exists()
    _begin_work(work, [dump], MiniRecipe(seed=MiniRecipe().seed + 1))
    assert not (work / "pairs.jsonl").exists()
    (tmp_path / "own.work").mkdir()
    (tmp_path / "own.work" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not of a run of this kind"):
        _begin_work(tmp_path / "own.work", [dump], MiniRecipe())
    with pytest.raises(InputError, match="no usable record"):
        make_mini([str(dump)], [], [], tmp_path / "m", MiniRecipe())
