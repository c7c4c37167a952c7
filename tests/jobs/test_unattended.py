"""`rebuild` as a schedule runs it: its history, what it tells, what it refuses, its deadline."""

import json
import os
import shlex
import sys

import boto3
import pytest
from checkpoints import SAMPLE
from processes import one_line, run_cli, running
from s3_server import s3_server

from danbooru_index.cli.entry import main
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.history import history
from danbooru_index.index.status import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HOLD = """
import sys
from danbooru_index.index.catalog import IndexRoot
root = IndexRoot(sys.argv[1])
root.create()
with root.path.owned():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def lines():
    return SAMPLE.read_text(encoding="utf-8").splitlines()[:120]


def write(path, lines, changed):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.utime(path, (changed, changed))


def tell(path):
    """The command that keeps what `--on-finish` is given."""
    return f"cat > {shlex.quote(str(path))}"


def test_nights_are_counted_told_and_remembered(ray_session, lines, checkpoint, tmp_path, capfd):
    """Three runs: the first, one with changes, one with an older dump that is the same."""
    dump, index, told = tmp_path / "d.jsonl", tmp_path / "i", tmp_path / "told.json"
    words = ["rebuild", str(dump), "--index", str(index), "--model", str(checkpoint)]
    words += ["--device", "cpu", "--shard-rows", "40", "--on-finish", tell(told)]
    write(dump, lines[:100], 2_000_000)
    assert main(words) == 0
    first = json.loads(told.read_text())
    assert (first["outcome"], first["records"], first["added"]) == ("published", 100, 0)
    assert first["generation"] == IndexRoot(index).current_id()
    later = [line.replace('"text": "', '"text": "! ', 1) if n < 5 else line
             for n, line in enumerate(lines[10:])]  # fmt: skip
    write(dump, later, 3_000_000)
    assert main(words) == 0
    second = json.loads(told.read_text())
    assert second["before"] == first["generation"]
    assert (second["added"], second["removed"], second["retexted"]) == (20, 10, 5)
    assert (second["records"], second["encoded"]) == (110, 25), "20 came, 5 have another text"
    assert (first["reused"], second["reused"]) == (0, 85)
    assert second["dump_at"] == 3_000_000
    assert "(+20 -10 tags, 5 with another text)" in capfd.readouterr().err
    folder = IndexRoot(index).current().path.local_path()
    page = (folder / "report.html").read_text(encoding="utf-8")
    for word in (f"Changes since {first['generation']}", "unchanged texts", "prepared 110 of 110"):
        assert word in page
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["changes"]["added"]["count"] == 20
    assert len(report["guards"]) == 5
    write(dump, later, 2_500_000)
    assert main(words) == 0
    assert json.loads(told.read_text())["outcome"] == "unchanged"
    assert "older than the one that was last published" in capfd.readouterr().err
    assert main(["status", str(index), "--history", "--json"]) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert [run["outcome"] for run in runs] == ["published", "published", "unchanged"]
    assert runs[1] == second
    assert main(["status", str(index), "--history"]) == 0
    assert "3 rebuilds noted" in capfd.readouterr().out
    write(dump, later[:60], 3_200_000)
    assert main(words) == 1
    kept = json.loads(told.read_text())
    assert "guard records: 60 records, -45.5% against 110 (--max-shrink 5%)" in kept["message"]
    assert [one["name"] for one in kept["guards"] if one["passed"] is False] == ["records"]
    assert IndexRoot(index).current_id() == second["generation"]
    assert main([*words, "--publish-anyway"]) == 0
    assert json.loads(told.read_text())["encoded"] == 0
    assert IndexRoot(index).current_id() != second["generation"]
    capfd.readouterr()
    write(dump, [], 3_500_000)
    dump.write_bytes(b"")
    assert main([*words[:-1], "exit 7"]) == 1
    err = capfd.readouterr().err
    assert "d.jsonl: empty (0 bytes); nothing was begun" in err
    assert "--on-finish ended with 7: exit 7" in err
    assert [run.outcome for run in history(IndexRoot(index))][-1] == "failed"


def test_two_at_once(tmp_path, lines, checkpoint):
    """One line and exit code 1, or 0 where that is asked for; nothing is begun."""
    dump, index = tmp_path / "d.jsonl", tmp_path / "i"
    write(dump, lines, 2_000_000)
    words = ["rebuild", dump, "--index", index, "--model", checkpoint, "--device", "cpu"]
    with running([sys.executable, "-c", HOLD, str(index)], stdin=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert "is at work on this index" in one_line(run_cli(*words), 1)
        told = tmp_path / "told.json"
        skipped = run_cli(*words, "--if-running", "skip", "--on-finish", tell(told))
        assert (skipped.returncode, skipped.stdout) == (0, "")
        assert "rebuild skipped: " in skipped.stderr
        assert json.loads(told.read_text())["outcome"] == "skipped"
    assert list((index / "generations").iterdir()) == []
    assert "choose one of fail, skip" in one_line(run_cli(*words, "--if-running", "wait"), 2)
    assert "--deadline takes a number" in one_line(run_cli(*words, "--deadline", "soon"), 2)


@pytest.mark.long
def test_a_deadline_stops_a_rebuild_and_the_next_one_goes_on(tmp_path, lines, checkpoint):
    dump, index = tmp_path / "d.jsonl", tmp_path / "i"
    write(dump, lines, 2_000_000)
    words = ["rebuild", dump, "--index", index, "--model", checkpoint, "--device", "cpu"]
    stopped = run_cli(*words, "--deadline", "3s")
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    last = stopped.stderr.strip().splitlines()[-1]
    assert last == (
        "danbooru-index: stopped after 3 s (--deadline); what is done is kept: run the same command"
        " to go on"
    )
    done = run_cli(*words, "--deadline", "10m")
    assert done.returncode == 0, done.stderr
    outcomes = [run.outcome for run in history(IndexRoot(index))]
    assert outcomes == ["failed", "published"]


@pytest.mark.long
@pytest.mark.release
def test_a_rebuild_of_an_index_in_an_object_store(tmp_path, lines, checkpoint):
    """Its shards are in the index's prefix; those of another dump go; its history is there too."""
    dump, index = tmp_path / "d.jsonl", "s3://tags/nightly"
    words = ["rebuild", dump, "--index", index, "--model", checkpoint]
    words += ["--device", "cpu", "--shard-rows", "40"]
    with s3_server(tmp_path) as url:
        client = boto3.client("s3", endpoint_url=url)

        def shards():
            found = client.list_objects_v2(Bucket="tags", Prefix="nightly/input/")["Contents"]
            return {one["Key"] for one in found if one["Key"].endswith(".parquet")}

        write(dump, lines[:100], 2_000_000)
        done = run_cli(*words)
        assert done.returncode == 0, done.stderr
        first = shards()
        write(dump, lines[20:], 3_000_000)
        done = run_cli(*words)
        assert done.returncode == 0, done.stderr
        assert len(first) == len(shards()) == 3
        assert not first & shards()
        assert verify(index).problems == []
        runs = history(IndexRoot(index))
        assert [(run.records, run.added, run.removed) for run in runs] == [
            (100, 0, 0),
            (100, 20, 20),
        ]
