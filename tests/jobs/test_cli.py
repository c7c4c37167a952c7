"""The command as a user meets it: help at once, one line for every mistake, the exit codes, clean
JSON.
"""

import json
import os
import shlex
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import SAMPLE
from processes import ROOT, one_line, run_cli, run_here

from danbooru_index.cli.entry import main
from danbooru_index.model.checkpoint import model_id

VERBS = ["prepare", "build", "rebuild", "search", "status", "verify", "rollback", "prune"]


def test_help_answers_at_once_without_heavy_imports():
    """At once: by what is imported, since seconds are the machine's."""
    script = """
import sys
from danbooru_index.cli.entry import main
try:
    main(["--help"])
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "torch", "ray", "lance", "pyarrow", "tqdm"}))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-1] == "[]"
    for verb in VERBS:
        assert verb in answer.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(verb, capfd):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    said = capfd.readouterr()
    assert f"danbooru-index {verb} " in said.out
    assert "example:" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VERB"),
        (["dance"], "invalid choice: 'dance'"),
        (["build"], "required"),
        (["build", "s", "--index", "i", "--device", "tpu"], "choose one of auto, cpu, cuda"),
        (
            ["build", "s", "--index", "i", "--precision", "fp8"],
            "choose one of auto, fp32, bf16, fp16",
        ),
        (
            ["build", "s", "--index", "i", "--device", "cpu", "--precision", "fp16"],
            "8 times slower",
        ),
        (["build", "s", "--index", "i", "--max-length", "9000"], "between 8 and 8192"),
        (["build", "s", "--index", "i", "--num-gpus", "0"], "at least 1"),
        (["build", "s", "--index", "i", "--num-gpus", "1", "--device", "cpu"], "contradict"),
        (["build", "s", "--index", "i", "--tokens-per-batch", "x"], "invalid int value"),
        (["build", "s", "--index", "i", "--max-rejects", "some"], "20 or 0.5%"),
        (["search", "i", "q", "--mode", "psychic"], "choose one of dense, sparse, colbert, hybrid"),
        (["search", "i", "q", "--weights", "1,2"], "three numbers"),
        (["search", "i", "q", "--weights", "nan,1,1"], "three numbers"),
        (["search", "i", "q", "--weights", "1e308,1e308,1"], "three numbers"),
        (["prepare", "x.jsonl", "--out", "o", "--shard-rows", "0"], "--shard-rows"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else None,
)
def test_wrong_usage_ends_with_2(arguments, words, capfd):
    assert main(arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1


def build(shards, index, model, *more):
    return run_cli("build", shards, "--index", index, "--model", model, "--device", "cpu", *more)


def test_bad_inputs_of_build_get_one_line_each(tmp_path, checkpoint, sample_shards):
    index = tmp_path / "index"
    assert "no such file or folder" in one_line(build(tmp_path / "gone", index, checkpoint), 1)
    assert not index.exists()
    (tmp_path / "empty").mkdir()
    assert "no .parquet file" in one_line(build(tmp_path / "empty", index, checkpoint), 1)
    (tmp_path / "my dump.csv").write_text("1girl,0,1,\n")
    line = one_line(build(tmp_path / "my dump.csv", index, checkpoint), 1)
    assert (
        f"a tag dump, not Parquet shards; run danbooru-index prepare '{tmp_path}/my dump.csv' --out"
        " data/shards" in line
    )
    assert "then danbooru-index build data/shards" in line
    assert "a folder among the files" in one_line(build(tmp_path / "*", index, checkpoint), 1)
    (tmp_path / "wrong").mkdir()
    pq.write_table(pa.table({"id": ["1"], "name": ["x"]}), tmp_path / "wrong" / "a.parquet")
    assert "no column text; it has id, name" in one_line(
        build(tmp_path / "wrong", index, checkpoint), 1
    )
    (tmp_path / "cut").mkdir()
    whole = next(sample_shards.glob("*.parquet")).read_bytes()
    (tmp_path / "cut" / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "not a whole Parquet file" in one_line(build(tmp_path / "cut", index, checkpoint), 1)
    (tmp_path / "none").mkdir()
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}),
        tmp_path / "none" / "a.parquet",
    )
    assert "hold no row" in one_line(build(tmp_path / "none", index, checkpoint), 1)
    (tmp_path / "file").write_text("x")
    assert "is a file; an index is a folder" in one_line(
        build(sample_shards, tmp_path / "file", checkpoint), 2
    )
    (tmp_path / "file2").write_text("x")
    assert "cannot be made" in one_line(
        build(sample_shards, tmp_path / "file2" / "index", checkpoint), 1
    )


def test_a_model_without_heads_is_refused_before_ray_starts(tmp_path, checkpoint, sample_shards):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / "sparse_linear.pt").unlink()
    (tmp_path / "ray").mkdir()
    options = ["--index", tmp_path / "index", "--model", model, "--device", "cpu"]
    answer = run_cli("build", sample_shards, *options, env={"RAY_TMPDIR": str(tmp_path / "ray")})
    assert "sparse_linear.pt missing" in one_line(answer, 1)
    assert os.listdir(tmp_path / "ray") == [], "a session of Ray's"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_and_read_only_disks(tmp_path, checkpoint, sample_shards):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        line = one_line(build(sample_shards, disk / "index", checkpoint), 1)
        assert "are free" in line
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = one_line(build(sample_shards, disk / "other", checkpoint), 1)
        assert "Read-only file system" in line
        line = one_line(run_cli("prepare", SAMPLE, "--out", disk / "shards"), 1)
        assert "Read-only file system" in line
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_names_and_queries_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"tags-\xb0\xa1.jsonl")
    (tmp_path / name).write_text('{"id": 1, "text": "a"}\nbroken\n')
    answer = run_cli("prepare", tmp_path / name, "--out", tmp_path / "s")
    assert answer.returncode == 3
    assert "Traceback" not in answer.stderr


def test_prepare_into_the_current_folder_and_without_a_usable_record(tmp_path):
    run_cli("prepare", SAMPLE, "--out", tmp_path / "s")
    before = sorted(p.name for p in (tmp_path / "s").iterdir())
    (tmp_path / "bad.jsonl").write_text("broken\n")
    line = one_line(run_cli("prepare", tmp_path / "bad.jsonl", "--out", tmp_path / "s"), 1)
    assert "no usable record" in line
    assert "s.rejects.jsonl" in line
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == before, "good shards stay"
    assert "not empty" in one_line(run_cli("prepare", SAMPLE, "--out", "."), 2)


def test_an_index_that_is_not_there(tmp_path):
    for verb in ("status", "verify", "rollback", "prune"):
        assert "no index here" in one_line(run_cli(verb, tmp_path / "gone"), 1)
    assert "no index here" in one_line(run_cli("search", tmp_path / "gone", "x"), 1)


def test_prepare_prints_a_report_or_one_json_document(tmp_path):
    answer = run_cli("prepare", SAMPLE, "--out", tmp_path / "s", "--json")
    assert answer.returncode == 0
    report = json.loads(answer.stdout)
    assert (report["records"], report["shards"], report["rejected"]) == (468, 1, {})
    assert "468 of 468 records" in run_cli("prepare", SAMPLE, "--out", tmp_path / "s").stdout


def test_rejects_exit_3_0_or_1(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    assert run_cli("prepare", path, "--out", tmp_path / "s").returncode == 3
    assert run_cli("prepare", path, "--out", tmp_path / "s", "--max-rejects", "1").returncode == 0
    assert run_cli("prepare", path, "--out", tmp_path / "s", "--max-rejects", "40%").returncode == 3
    assert "nothing was written" in one_line(
        run_cli("prepare", path, "--out", tmp_path / "t", "--strict"), 1
    )
    assert not (tmp_path / "t").exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_rebuild_search_roll_back_from_the_command_line(tmp_path, checkpoint, capfd):
    """A nightly rebuild, twice, the second with one record more; queries from stdin; back to the
    first.
    """
    index = tmp_path / "index"
    dump = tmp_path / "dump.jsonl"
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:100]
    dump.write_text("\n".join(lines), encoding="utf-8")
    options = ["--index", index, "--model", checkpoint, "--device", "cpu", "--json"]
    first = run_cli("rebuild", dump, *options)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("\n") == 1
    dump.write_text(
        "\n".join([*lines, '{"id": "new", "text": "【食物】toast - 吐司"}', "broken"]),
        encoding="utf-8",
    )
    second = run_cli("rebuild", dump, *options)
    assert second.returncode == 3
    report = json.loads(second.stdout)
    assert (report["records"], report["rejected"]) == (101, {"unparsable_line": 1})
    assert "Traceback" not in first.stderr + second.stderr
    found = run_cli(
        "search",
        index,
        "-",
        "--json",
        "--limit",
        "3",
        "--device",
        "cpu",
        stdin="【食物】toast - 吐司\n\n猫耳\n",
    )
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == ["【食物】toast - 吐司", "猫耳"]
    assert {(answer["model"], answer["model_id"]) for answer in answers} == {
        (str(checkpoint), model_id(checkpoint))
    }
    shown = run_here(capfd, "search", index, "猫耳", "--limit", "1", "--device", "cpu")
    assert shown.startswith(f"{index}, by {checkpoint} (id {model_id(checkpoint)[:12]})\n猫耳\n")
    assert "new" in [hit["id"] for hit in answers[0]["hits"]]
    assert {"rank", "score", "dense", "sparse", "colbert", "tag", "text"} <= answers[0]["hits"][
        0
    ].keys()
    run_here(capfd, "verify", index)
    back = run_here(capfd, "rollback", index, "--json")
    assert json.loads(back)["generation"] == json.loads(first.stdout)["generation"]
    described = json.loads(run_here(capfd, "status", index, "--json"))
    assert [g["state"] for g in described["generations"]] == ["published", "kept"]
    assert "nothing to delete" in run_here(capfd, "prune", index)


@pytest.mark.slow
def test_closed_streams_and_narrow_encodings_are_no_tracebacks(tmp_path):
    command = [sys.executable, "-m", "danbooru_index.cli"]
    for words, code in (
        (f"{shlex.join(command)} status {tmp_path} >&-", 1),
        (f"{shlex.join(command)} status {tmp_path} <&- >&-", 1),
        (f"PYTHONIOENCODING=latin-1 {shlex.join(command)} search --help", 0),
    ):
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == code
    assert "goes after --" in one_line(run_cli("search", tmp_path, "-_-"), 2)


def test_an_object_store_without_its_library_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert main(["status", "s3://bucket/index"]) == 1
    said = capsys.readouterr().err
    assert "needs obstore: pip install" in said
    assert "Traceback" not in said
