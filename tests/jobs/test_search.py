"""Searching a published index by the command line: names and reasons, a model that is missing,
arrays that are damaged, a build that is killed while it makes them.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import vault
from checkpoints import Shape, make_checkpoint
from processes import one_line, run_cli

from danbooru_index.index.arrays import FOLDER
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.status import verify
from danbooru_index.search.by_part import MOST_MEANT
from danbooru_index.search.tag_index import TagIndex


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small index and the model that built it, as vectors of chance."""
    folder = tmp_path_factory.mktemp("search")
    model = make_checkpoint(
        folder / "model", Shape(layers=1, hidden=vault.DIM, heads=2, intermediate=32)
    )
    vault.build(folder / "index", vault.shard_names(2), path=str(model))
    return folder / "index", model


@pytest.fixture
def copy(published, tmp_path):
    """The index, for a test that changes it."""
    shutil.copytree(published[0], tmp_path / "index")
    return tmp_path / "index"


def tag_of(index):
    return next(iter(TagIndex.open(index)._open.files.records([3])))["tag"]


def test_a_lexical_search_needs_no_model(published):
    index, _ = published
    tag = tag_of(index)
    done = run_cli(
        "search", index, tag, "--mode", "lexical", "--json", "--nsfw", "--model", "no/where/"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["mode"] == "lexical"
    hit = answer["hits"][0]
    assert (hit["tag"], hit["reason"], hit["matched"]) == (tag, "exact", tag)
    assert (hit["score"], hit["dense"], hit["sparse"], hit["colbert"]) == (1.0, None, None, None)


def test_without_the_model_hybrid_answers_by_names_and_says_so(published):
    index, _ = published
    done = run_cli("search", index, tag_of(index), "--json", "--nsfw", "--model", "no/where/")
    assert done.returncode == 0
    assert json.loads(done.stdout)["mode"] == "lexical"
    (said,) = done.stderr.splitlines()
    assert "by names alone" in said
    assert "--model no/where/: no such folder" in said
    for mode in ("dense", "sparse", "colbert"):
        done = run_cli("search", index, "x", "--mode", mode, "--model", "no/where/")
        assert done.returncode == 1
        assert "no such folder" in one_line(done, 1)


def test_another_model_is_an_error_that_names_both(published, tmp_path):
    index, _ = published
    other = make_checkpoint(
        tmp_path / "other", Shape(layers=1, hidden=vault.DIM, heads=2, intermediate=32), seed=7
    )
    done = run_cli("search", index, "x", "--model", other)
    assert done.returncode == 1
    built = IndexRoot(index).current().manifest.model
    assert built.id[:12] in one_line(done, 1)
    assert str(other) in done.stderr


def test_a_hybrid_search_puts_names_first_and_its_score_is_that_of_the_model(published):
    index, model = published
    tag = tag_of(index)
    done = run_cli("search", index, tag, "--json", "--nsfw", "--model", model, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)["hits"]
    assert hits[0]["tag"] == tag
    exact = [hit["reason"] == "exact" for hit in hits]
    assert exact[0]
    assert exact == sorted(exact, reverse=True)
    for hit in hits:
        mean = 0.4 * hit["dense"] + 0.2 * hit["sparse"] + 0.4 * hit["colbert"]
        assert hit["score"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--popularity", "-1"], "--popularity must be"),
        (["--popularity", "x"], "--popularity"),
        (["--mode", "lexicon"], "unknown mode 'lexicon'"),
        (["--category", "nosuch"], "--category 'nosuch': no record has it"),
    ],
)
def test_a_bad_argument_is_one_line(published, options, words):
    done = run_cli("search", published[0], "x", "--mode", "lexical", *options)
    assert done.returncode == 2
    assert words in one_line(done, 2)


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_array_is_told_by_verify(copy, harm):
    path = next(copy.glob(f"generations/*/{FOLDER}/name_keys.npy"))
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[:-5])
    else:
        path.unlink()
    problems = verify(str(copy)).problems
    assert len(problems) == 1
    assert f"{FOLDER}/name_keys.npy: not as it was written" in problems[0]
    if harm != "flip":
        done = run_cli("search", copy, "x", "--mode", "lexical")
        assert done.returncode == 1
        assert "danbooru-index verify says what is wrong" in one_line(done, 1)


def test_a_build_killed_between_two_arrays_makes_them_anew(tmp_path):
    command = ["--failpoint", f"search.array:kill:{tmp_path / 'token'}:4"]
    first = vault_process(tmp_path / "index", *command)
    assert first.returncode == -signal.SIGKILL
    assert IndexRoot(tmp_path / "index").current_id() is None
    assert vault_process(tmp_path / "index").returncode == 0
    assert verify(str(tmp_path / "index")).problems == []
    assert TagIndex.open(tmp_path / "index").search(
        tag_of(tmp_path / "index"), mode="lexical", nsfw=True
    )


def vault_process(index, *options):
    command = [sys.executable, vault.__file__, str(index), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


QUERIES = ["school uniform", "猫耳", "ツインテール", "hair ov", "lng hair", "akagi", "水手服", "x"]


def answers_of(tags, number):
    mode = ("hybrid", "dense", "sparse", "colbert", "lexical")[number % 5]
    hits = tags.search(QUERIES[number % len(QUERIES)], mode=mode, limit=5, nsfw=number % 2 == 0)
    return [(hit.id, hit.score, hit.reason) for hit in hits]


def threads_agree(index, model, count):
    """Every answer of eight threads is the one of a single thread."""
    with TagIndex.open(index, model=str(model), device="cpu") as tags:
        expected = [answers_of(tags, number) for number in range(len(QUERIES) * 5 * 2)]
    fresh = TagIndex.open(index, model=str(model), device="cpu")  # nothing is loaded yet
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: answers_of(fresh, number), range(count)))
    return all(
        [one[:1] + one[2:] for one in answer]
        == [one[:1] + one[2:] for one in expected[number % len(expected)]]
        and [one[1] for one in answer]
        == pytest.approx([one[1] for one in expected[number % len(expected)]], abs=1e-5)
        for number, answer in enumerate(found)
    )


def test_eight_threads_get_the_answers_of_one(published):
    assert threads_agree(*published, 160)


@pytest.mark.long
def test_ten_thousand_queries_of_eight_threads(published):
    assert threads_agree(*published, 10_000)


def test_many_queries_at_once_as_tables_and_asynchronously(published):
    index, model = published
    with TagIndex.open(index, model=str(model), device="cpu") as tags:
        together = tags.search_many(QUERIES, limit=5)
        alone = [tags.search(query, limit=5) for query in QUERIES]
        assert [[hit.id for hit in hits] for hits in together] == [
            [hit.id for hit in hits] for hits in alone
        ]
        assert tags.search_many([]) == []
        hits = asyncio.run(tags.search_async(QUERIES[0], limit=5))
        assert [hit.id for hit in hits] == [hit.id for hit in alone[0]]
        table = hits.to_arrow()
        assert table.to_pylist() == [hit.to_dict() for hit in hits]
        assert hits.to_pandas()["tag"].tolist() == [hit.tag for hit in hits]
        nothing = tags.search("🙂🙂", mode="lexical").to_arrow()
        assert (nothing.num_rows, nothing.schema) == (0, table.schema)


def test_a_closed_index_opens_its_model_again(published):
    index, model = published
    tags = TagIndex.open(index, model=str(model), device="cpu")
    with tags:
        first = tags.search("x", limit=1)
    assert tags.search("x", limit=1) == first


def test_a_list_of_names_is_resolved_without_a_model(published):
    index, _ = published
    tag = tag_of(index)
    done = run_cli("search", index, f"({tag}:1.2), qqqqqq", "--resolve", "--json", "--model", "no/")
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout)["names"]
    assert names == [
        {"name": tag, "standing": "confirmed", "tag": tag, "candidates": []},
        {"name": "qqqqqq", "standing": "unknown", "tag": None, "candidates": []},
    ]
    done = run_cli("search", index, "-", "--resolve", stdin=f"{tag}\n\nqqqqqq\n")
    assert done.stdout.splitlines()[1:] == [
        f"  confirmed   {tag}  ->  {tag}",
        "  unknown     qqqqqq",
    ]


def test_an_explanation_adds_up(published):
    """What is added to the score orders the hits that no name puts first; tokens give `sparse`."""
    index, model = published
    with TagIndex.open(index, model=str(model)) as tags:
        hits = tags.search("1gir", limit=10, nsfw=True, explain=True)
        for hit in hits:
            told = hit.explanation
            assert told.total == pytest.approx(hit.score + sum(told.added.values()), abs=1e-5)
            assert sum(told.tokens.values()) == pytest.approx(hit.sparse, abs=1e-5)
            assert told.found
        rest = [h.explanation.total for h in hits if h.reason not in ("exact", "alias")]
        assert rest == sorted(rest, reverse=True)
        assert any("popularity" in hit.explanation.added for hit in hits)
        plain = tags.search("1gir", limit=10, nsfw=True)
        assert [hit.id for hit in plain] == [hit.id for hit in hits]
        assert plain[0].explanation is None
        assert "explanation" not in plain[0].to_dict()
        by_name = tags.search("1girl", mode="lexical", explain=True)
        assert by_name[0].explanation.found == {"lexical": 1}
    done = run_cli("search", index, "1gir", "--explain", "--model", model, "--device", "cpu")
    assert "found by" in done.stdout
    assert "popularity" in done.stdout


def test_a_prompt_is_answered_by_part(published):
    """Each part that is a name stands first, in order; what no name covers is told, with what it
    means.
    """
    index, model = published
    query = "(1girl:1.2), qqqq xyz, two boys"
    done = run_cli("search", index, query, "--json", "--model", model, "--device", "cpu")
    answer = json.loads(done.stdout)
    parts = [(part["part"], part["covered"]) for part in answer["parts"]]
    assert parts == [("1girl", True), ("qqqq xyz", False), ("two boys", True)]
    assert answer["parts"][0]["tags"] == ["1girl"]
    assert len(answer["parts"][1]["tags"]) == 3
    first = [(hit["tag"], hit["part"], hit["reason"]) for hit in answer["hits"][:3]]
    assert first[:2] == [("1girl", "1girl", "exact"), ("2boys", "two boys", "alias")]
    # What the other part means, unless it is there already.
    meant = [tag for tag in answer["parts"][1]["tags"][:1] if tag not in ("1girl", "2boys")]
    assert [hit["tag"] for hit in answer["hits"] if hit["part"] == "qqqq xyz"] == meant
    assert first[2:][: len(meant)] == [(tag, "qqqq xyz", "meaning") for tag in meant]
    done = run_cli("search", index, query, "--mode", "lexical")
    assert "by part" in done.stdout
    assert "qqqq xyz  ?>  no tag" in done.stdout
    answer = json.loads(run_cli("search", index, "1girl", "--mode", "lexical", "--json").stdout)
    assert answer["parts"] == []


def test_the_model_is_asked_for_a_few_parts_only(published):
    """Each is a search: a prompt of hundreds of unknown words would take seconds."""
    index, model = published
    with TagIndex.open(index, model=str(model)) as tags:
        hits = tags.search(", ".join(["1girl", *(f"qq{n}" for n in range(40))]))
    asked = [bool(part.tags) for part in hits.parts if not part.covered]
    assert asked == [True] * MOST_MEANT + [False] * (40 - MOST_MEANT)
