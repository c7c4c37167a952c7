"""The benchmark itself: rounds in turn, ratios, its parts on small models and through the real Ray;
no timing is asserted.
"""

import json

import pytest
from processes import run_cli, run_here

from danbooru_index.benchmark.run import BenchmarkConfig, Part, in_turn, ratio, summary
from danbooru_index.cli.entry import main
from danbooru_index.errors import UsageError


def test_every_round_runs_all_and_the_order_turns():
    order = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abbaab"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_ratios_are_of_rounds_not_of_medians():
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert summary([2.0, 1.0, 4.0], 100) == {
        "seconds": 2.0,
        "fastest": 1.0,
        "slowest": 4.0,
        "texts_per_second": 50.0,
    }


@pytest.mark.parametrize("part", Part)
def test_every_part_has_its_function(part):
    assert part.measure.__name__ == part.value


def test_wrong_usage_says_what_is_known(capsys):
    with pytest.raises(UsageError, match="choose one of encoder"):
        Part.parse("speed")
    with pytest.raises(UsageError, match="--rows"):
        BenchmarkConfig(model="x", rows=0)
    assert main(["benchmark", "--model", "x", "--against", "chroma"]) == 2
    assert main(["benchmark", "encoder", "--model", "/nowhere"]) == 1
    assert "no such folder" in capsys.readouterr().err


def run(checkpoint, *words):
    """In a process of its own, with a Ray of its own."""
    done = run_cli("benchmark", *words, "--model", checkpoint, "--device", "cpu", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["parts"]


def measure_here(capfd, checkpoint, *words):
    """In this process."""
    out = run_here(capfd, "benchmark", *words, "--model", checkpoint, "--device", "cpu")
    return json.loads(out.splitlines()[-1])["parts"], out


@pytest.mark.long
@pytest.mark.slow
def test_the_encoder_is_compared_with_flag_embedding_and_agrees(checkpoint, capfd):
    parts, out = measure_here(
        capfd, checkpoint, "encoder", "packing", "colbert", "--rows", "300", "--repeats", "2"
    )
    encoder = parts["encoder"]
    assert encoder["agreement"]["fp32"]["dense_difference"] <= 1e-5
    assert encoder["agreement"]["fp32"]["colbert_difference"] <= 1e-5
    assert encoder["agreement"]["fp32"]["rows_with_other_sparse_keys"] == 0
    assert {"flagembedding", "flagembedding, calls of 256", "ours, fp32"} <= encoder[
        "seconds"
    ].keys()
    assert all(
        0 < value["least"] <= value["median"] <= value["most"]
        for value in encoder["ratios"].values()
    )
    assert 0 < encoder["device"]["fp32"]["share_of_gemm"] < 1.2
    assert parts["packing"]["slower_than_the_default"].keys() == parts["packing"][
        "seconds"
    ].keys() - {next(iter(parts["packing"]["seconds"]))}
    assert parts["colbert"]["full"]["values"] == 64
    assert "fp32 against flagembedding" in out


@pytest.mark.long
@pytest.mark.slow
def test_one_precision_is_measured_where_one_is_asked_for(checkpoint, capfd):
    words = (
        "encoder",
        "--against",
        "nothing",
        "--precision",
        "bf16",
        "--rows",
        "64",
        "--repeats",
        "1",
    )
    parts, _ = measure_here(capfd, checkpoint, *words)
    assert list(parts["encoder"]["seconds"]) == ["ours, bf16"]


@pytest.mark.long
@pytest.mark.ray
def test_the_simulated_parts_are_real_builds(checkpoint):
    parts = run(checkpoint, "shards", "--rows", "16", "--repeats", "1")
    shards = parts["shards"]
    assert shards["shards"] == 16
    assert shards["driver_cpu_ms_a_shard"] > 0
    assert list(shards["commit_ms_a_shard_by_shards"]) == ["2", "4", "8", "16"]
    many = shards["many_encoders"]
    assert many["encoders"] == 2
    assert many["driver_cpu_ms_a_shard"] > 0


@pytest.mark.ray
def test_the_script_that_users_run_is_run(checkpoint):
    pytest.importorskip(
        "chromadb", reason="chromadb is not installed: pip install -e '.[benchmark]'"
    )
    parts = run(checkpoint, "job", "--rows", "64", "--repeats", "1")
    job = parts["job"]
    assert job["last_round"]["ours"]["records"] == job["last_round"]["script"]["records"] == 64
    assert job["ratio"]["median"] > 0
