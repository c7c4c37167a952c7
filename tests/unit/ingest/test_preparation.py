"""Tag dumps as users have them -> shards: every kind of input, every reject kept, the same bytes
for the same input.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danbooru_index.errors import InputError, RejectedRecordsError, UsageError
from danbooru_index.ingest.prepare import prepare
from danbooru_index.ingest.sampling import draw_samples
from danbooru_index.ingest.scan import scan
from danbooru_index.ingest.shards import RECORD_SCHEMA, read_shard
from danbooru_index.prepare_config import PrepareConfig, RejectLimit


def rows_of(out):
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    ).to_pylist()


def run(tmp_path, *inputs, **options):
    out = tmp_path / "out"
    return prepare(PrepareConfig(tuple(map(str, inputs)), str(out), **options)), out


def write_jsonl(path, records, newline="\n", bom=b""):
    body = newline.join(json.dumps(record, ensure_ascii=False) for record in records) + newline
    path.write_bytes(bom + body.encode())
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "jsonl.gz", "jsonl.zst"])
def test_json_lines_plain_and_compressed(tmp_path, sample, kind):
    body = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in sample).encode()
    path = tmp_path / f"tags.{kind}"
    compress = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(
        kind.split(".")[-1], bytes
    )
    path.write_bytes(compress(body))
    report, out = run(tmp_path, path, shard_rows=100)
    rows = rows_of(out)
    assert (report.read, report.records, report.shards) == (468, 468, 5)
    assert [row["id"] for row in rows] == [record["id"] for record in sample]
    assert [row["text"] for row in rows] == [record["text"] for record in sample]
    assert pq.read_schema(next(out.glob("*.parquet"))).remove_metadata() == RECORD_SCHEMA
    with_explanation = sum(" - " in record["text"] for record in sample)
    assert report.explained_share == with_explanation / len(sample)


def test_bom_crlf_blank_lines_and_integer_ids(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"id": 1, "text": "一"}, {"id": 2, "text": "二\u2028三"}],
        "\r\n",
        b"\xef\xbb\xbf",
    )
    path.write_bytes(path.read_bytes() + b"\r\n\r\n")
    report, out = run(tmp_path, path)
    assert [(row["id"], row["text"]) for row in rows_of(out)] == [("1", "一"), ("2", "二\u2028三")]
    assert not report.rejected


def test_the_autocomplete_csv_with_translations(tmp_path):
    rows = [
        ["1girl", 0, 600, "1girls,sole_female"],
        ['"love"_live!', 3, 5, ""],
        ["=3", 0, 9, "=_3,三"],
        ["hatsune_miku", 4, 1, ""],
    ]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path = tmp_path / "danbooru.csv"
    path.write_text(text.getvalue(), encoding="utf-8")
    zh = tmp_path / "zh.csv"
    zh.write_text('1girl,一个女孩\nhatsune_miku,"初音未来, 虚拟歌手"\n', encoding="utf-8-sig")
    report, out = run(tmp_path, path, translations=str(zh))
    assert [row["text"] for row in rows_of(out)] == [
        "【general】1girl - 一个女孩, sole female",
        '【copyright】"love"_live!',
        "【general】=3 - 三",
        "【character】hatsune_miku - 初音未来, 虚拟歌手",
    ]
    assert rows_of(out)[2]["aliases"] == ["=_3", "三"]
    assert report.explained_share == 0.75


def test_a_csv_header_is_passed_over_and_a_tag_called_name_is_not(tmp_path):
    (tmp_path / "a.csv").write_text("name,category,post_count,aliases\nname,0,1,\n")
    report, out = run(tmp_path, tmp_path / "a.csv")
    assert [row["id"] for row in rows_of(out)] == ["name"]
    assert report.read == 1


def test_decimal_and_missing_counts(tmp_path):
    (tmp_path / "b.csv").write_text("1girl,0,1234.0,\nsolo,4,,\n")
    _, out = run(tmp_path, tmp_path / "b.csv")
    assert [(row["post_count"], row["category"]) for row in rows_of(out)] == [
        (1234, "general"),
        (None, "character"),
    ]


def test_translations_that_nothing_uses_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "一"}])
    (tmp_path / "zh.csv").write_text("一,one\n", encoding="utf-8")
    with pytest.raises(UsageError, match="brings its own text"):
        run(tmp_path, path, translations=str(tmp_path / "zh.csv"))


def test_translations_do_not_hide_why_nothing_is_usable(tmp_path):
    (tmp_path / "a.csv").write_text("name,type,count\n ,0,5\n", encoding="utf-8")
    (tmp_path / "zh.csv").write_text("maid,女仆\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 empty_id"):
        run(tmp_path, tmp_path / "a.csv", translations=str(tmp_path / "zh.csv"))


def test_an_unclosed_quote_spoils_its_own_line_only(tmp_path):
    (tmp_path / "a.csv").write_text('a,0,1,\n"b,0,1,\nc,0,1,"x"\n')
    report, out = run(tmp_path, tmp_path / "a.csv")
    assert [row["id"] for row in rows_of(out)] == ["a", "c"]
    assert dict(report.rejected) == {"unparsable_line": 1}


def test_several_inputs_a_folder_and_parquet(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", [{"id": "3", "text": "c"}])
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), folder / "a.parquet")
    (folder / "notes.txt").write_text("not an input")
    extra = write_jsonl(tmp_path / "x.jsonl", [{"id": "4", "text": "d"}])
    _, out = run(tmp_path, folder, extra)
    assert [row["id"] for row in rows_of(out)] == ["1", "2", "3", "4"]


def test_every_reject_is_counted_named_and_kept(tmp_path):
    lines = [
        '{"id": "1", "text": "a"}',
        "broken",
        '{"id": "2"}',
        '{"id": "1", "text": "b"}',
        '{"id": "", "text": "c"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"id": "9", "text": "\xff"}\n')
    report, out = run(tmp_path, path)
    assert dict(report.rejected) == {
        "unparsable_line": 1,
        "missing_text": 1,
        "duplicate_id": 1,
        "empty_id": 1,
        "invalid_unicode": 1,
    }
    kept = [
        json.loads(line)
        for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(r["line"], r["reason"]) for r in kept] == [
        (2, "unparsable_line"),
        (3, "missing_text"),
        (4, "duplicate_id"),
        (5, "empty_id"),
        (6, "invalid_unicode"),
    ]
    assert kept[0]["source"] == str(path)
    assert kept[0]["content"] == "broken"
    assert report.read == report.records + sum(report.rejected.values()) == 6


def test_a_rejected_record_does_not_make_a_later_one_a_duplicate(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"id": "1", "text": ""}, {"id": "1", "text": "ok"}, {"id": "1", "text": "late"}],
    )
    _, out = run(tmp_path, path)
    assert [(row["id"], row["text"]) for row in rows_of(out)] == [("1", "ok")]


def test_duplicates_across_files_keep_the_first(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": f"a{i}"} for i in range(300)])
    second = write_jsonl(
        tmp_path / "b.jsonl", [{"id": i, "text": f"b{i}"} for i in range(200, 400)]
    )
    report, out = run(tmp_path, first, second, shard_rows=64)
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [str(i) for i in range(400)]
    assert {row["text"][0] for row in rows[:300]} == {"a"}
    assert report.rejected["duplicate_id"] == 100


def test_strict_writes_nothing(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "a"}, {"id": "1", "text": "b"}])
    with pytest.raises(RejectedRecordsError, match=r"a\.jsonl:2 duplicate_id"):
        run(tmp_path, path, strict=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


def test_the_same_input_gives_the_same_bytes_and_names_follow_the_content(tmp_path, sample):
    path = write_jsonl(tmp_path / "a.jsonl", sample)
    _, out = run(tmp_path, path, shard_rows=100)
    first = {p.name: p.read_bytes() for p in out.glob("*.parquet")}
    _, out = run(tmp_path, path, shard_rows=100)
    assert {p.name: p.read_bytes() for p in out.glob("*.parquet")} == first
    for name, content in first.items():
        assert hashlib.sha256(content).hexdigest()[:16] in name
    sample = [*sample[:450], {**sample[450], "text": "changed"}, *sample[451:]]
    write_jsonl(path, sample)
    _, out = run(tmp_path, path, shard_rows=100)
    changed = {p.name for p in out.glob("*.parquet")}
    assert len(changed & first.keys()) == 4
    assert len(changed) == 5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl.gz",
            gzip.compress(b'{"id": "1", "text": "a"}\n' * 5000)[:-20],
            "cannot be read to its end",
        ),
        (
            "a.jsonl.zst",
            zstandard.ZstdCompressor().compress(b'{"id": "1", "text": "a"}\n' * 90_000)[:-20],
            "cannot be read to its end",
        ),
        ("a.jsonl.gz", b"not gzip", "cannot be read to its end"),
        ("a.json", b'[{"id": "1", "text": "a"}, {', "broken JSON: line 1"),
        ("a.jsonl", bytes(range(256)) * 9000, "not UTF-8; say its encoding by --encoding"),
        ("a.parquet", b"PAR1 not parquet", "cannot be read"),
        ("a.jsonl", b"", "no usable record"),
        ("a.jsonl", b"broken\n", "no usable record"),
    ],
)
def test_inputs_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        run(tmp_path, tmp_path / name)


def test_wrong_paths(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path, tmp_path / "gone.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.jsonl"):
        run(tmp_path, tmp_path / "empty")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(UsageError, match="unknown kind"):
        run(tmp_path, tmp_path / "a.doc")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"which column holds the tags\? it has id: .* --map tag="):
        run(tmp_path, tmp_path / "b.parquet")


@pytest.mark.parametrize("stranger", ["notes.txt", "index/CURRENT.json", "new.jsonl"])
def test_what_prepare_did_not_write_is_not_replaced(tmp_path, stranger):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "一"}])
    _, out = run(tmp_path, path)
    (out / stranger).parent.mkdir(exist_ok=True)
    kept = write_jsonl(out / stranger, [{"id": "2", "text": "二"}])
    before = sorted(file.name for file in out.rglob("*"))
    with pytest.raises(UsageError, match=stranger.split("/", maxsplit=1)[0]):
        run(tmp_path, kept if stranger == "new.jsonl" else path)
    assert sorted(file.name for file in out.rglob("*")) == before


def test_shards_may_replace_themselves_but_not_one_of_them_all(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": str(n), "text": "一"} for n in range(3)])
    _, out = run(tmp_path, path, shard_rows=1)
    with pytest.raises(UsageError, match="lies in it"):
        run(tmp_path, min(out.glob("*.parquet")))
    report, out = run(tmp_path, out, shard_rows=3)
    assert (report.records, len(list(out.glob("*.parquet")))) == (3, 1)


def test_what_a_killed_run_left_beside_its_output(tmp_path):
    """Half-written shards go; the shards that it was about to replace come back; those of a process
    that lives stay.
    """
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "一"}])
    _, out = run(tmp_path, path)
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    host, dead = os.uname().nodename, ended.stdout.strip()
    out.rename(tmp_path / f"out.old-{host}-{dead}")
    (tmp_path / f"out.partial-{host}-{dead}").mkdir()
    alive = tmp_path / f"out.partial-{host}-{os.getppid()}"
    alive.mkdir()
    with pytest.raises(InputError):
        run(tmp_path, tmp_path / "nothing.jsonl")
    assert [row["id"] for row in rows_of(out)] == ["1"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "out", alive.name]


def test_an_output_folder_that_is_not_ours_is_left_alone(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "a"}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        run(tmp_path, path)
    assert (tmp_path / "out" / "precious.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("limit", "rejected", "read", "within"),
    [
        ("0", 0, 10, True),
        ("0", 1, 10, False),
        ("3", 3, 10, True),
        ("10%", 1, 10, True),
        ("10%", 2, 10, False),
    ],
)
def test_reject_limits(limit, rejected, read, within):
    assert RejectLimit.parse(limit).allows(rejected, read) is within


@pytest.mark.parametrize("word", ["x", "-1", "101%", "%", ""])
def test_wrong_reject_limits(word):
    with pytest.raises(UsageError):
        RejectLimit.parse(word)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.text(max_size=3)),
)
fields = st.dictionaries(
    st.sampled_from(["id", "text", "tag", "category", "post_count", "aliases", "nsfw"]), values
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(fields.map(json.dumps), st.text(max_size=20).filter(lambda s: "\n" not in s)),
        max_size=8,
    )
)
def test_any_lines_are_accounted_for_without_a_traceback(tmp_path, lines):
    path = tmp_path / "any.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        report, out = run(tmp_path, path)
    except InputError:
        return
    assert report.read == report.records + sum(report.rejected.values())
    ids = [row["id"] for row in rows_of(out)]
    assert len(ids) == len(set(ids)) == report.records


def test_shards_of_any_parquet_and_large_files_are_sliced(tmp_path):
    table = pa.table(
        {"id": [str(i) for i in range(50_000)], "text": [f"t{i}" for i in range(50_000)]}
    )
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=6_000)
    pq.write_table(table.slice(0, 3), tmp_path / "one.parquet")
    shards = scan(str(tmp_path)).shards
    assert sum(shard.rows for shard in shards) == 50_003
    assert max(shard.rows for shard in shards) <= 16_384
    assert len({shard.id for shard in shards}) == len(shards) == 5
    whole = [row["id"] for shard in shards[:-1] for row in read_shard(shard)[0].to_pylist()]
    assert whole == table["id"].to_pylist()
    records, rejects = read_shard(shards[-1])
    assert records.num_rows == 0
    assert [reject.reason.value for reject in rejects] == ["duplicate_id"] * 3


def test_metadata_too_long_to_be_searched_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(
        path, pa.schema([("id", pa.string()), ("text", pa.string())]), store_schema=False
    ) as writer:
        writer.add_key_value_metadata({"padding": "-" * (65 << 20)})
        writer.write_table(pa.table({"id": ["1"], "text": ["一"]}))
    with pytest.raises(
        InputError, match=r"a\.parquet: more than 64 MB of metadata; write it again"
    ):
        scan(str(path))
    with pytest.raises(InputError, match="more than 64 MB of metadata"):
        run(tmp_path, path)


def test_what_a_folder_holds(tmp_path):
    """Names in capitals, linked folders, folders named like files; not what is hidden, an index, or
    the output itself.
    """
    dump = tmp_path / "dump"
    for number, name in enumerate(
        ["A.PARQUET", "b.parquet/part-0.parquet", ".trash/c.parquet", "_tmp/d.parquet"]
    ):
        (dump / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [str(number)], "text": ["一"]}), dump / name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pq.write_table(pa.table({"id": ["9"], "text": ["九"]}), elsewhere / "e.parquet")
    (dump / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(dump)
    (dump / "idx" / "generations").mkdir(parents=True)
    (dump / "idx" / "CURRENT.json").write_text("{}")
    assert [
        row["id"] for shard in scan(str(dump)).shards for row in read_shard(shard)[0].to_pylist()
    ] == ["0", "1", "9"]
    for _ in range(2):  # what the first run wrote is no input of the second
        report = prepare(PrepareConfig((str(dump),), str(dump / "shards")))
        assert (report.read, report.records) == (3, 3)
    (dump / "gone.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"gone\.jsonl: a link to a file that is not there"):
        run(tmp_path, dump)


def test_samples_of_an_input_that_is_nearly_all_rejects(tmp_path):
    for number in range(17):  # samples come from every second of 17 files
        text = "一" if number == 15 else " "
        pq.write_table(
            pa.table({"id": [str(number)], "text": [text]}), tmp_path / f"{number:02d}.parquet"
        )
    assert [sample.id for sample in draw_samples(scan(str(tmp_path)).shards).checked] == ["15"]


def test_columns_that_are_not_needed_are_not_read(tmp_path):
    """A date beyond Python's calendar in a column of no concern, and one in `id` itself."""
    beyond = pa.array([10**15, 0], pa.timestamp("s"))
    pq.write_table(
        pa.table({"id": ["1", "2"], "text": ["a", "b"], "when": beyond}), tmp_path / "a.parquet"
    )
    records, rejects = read_shard(scan(str(tmp_path / "a.parquet")).shards[0])
    assert (records.num_rows, rejects) == (2, [])
    assert run(tmp_path, tmp_path / "a.parquet")[0].records == 2
    pq.write_table(pa.table({"id": beyond, "text": ["a", "b"]}), tmp_path / "b.parquet")
    records, rejects = read_shard(scan(str(tmp_path / "b.parquet")).shards[0])
    assert (records.num_rows, [r.reason.value for r in rejects]) == (
        0,
        ["invalid_unicode", "wrong_type"],
    )


def test_one_huge_row_group_is_cut_by_rows(tmp_path):
    count = 40_000
    pq.write_table(
        pa.table({"id": [str(i) for i in range(count)], "text": ["x"] * count}),
        tmp_path / "a.parquet",
    )
    shards = scan(str(tmp_path / "a.parquet")).shards
    assert [shard.rows for shard in shards] == [16_384, 16_384, 7_232]
    assert read_shard(shards[2])[0]["id"][0].as_py() == "32768"


def test_the_same_file_twice_is_two_shards_of_which_one_is_duplicates(tmp_path):
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"id": ["1", "2"], "text": ["x", "y"]}), tmp_path / f"{name}.parquet"
        )
    shards = scan(str(tmp_path)).shards
    assert [(len({s.id for s in shards})), [s.drop for s in shards]] == [2, [(), (0, 1)]]


def test_a_shard_that_changed_is_noticed(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), path)
    shard = scan(str(path)).shards[0]
    pq.write_table(pa.table({"id": ["1"], "text": ["z"]}), path)
    assert scan(str(path)).shards[0].id != shard.id
    with pytest.raises(InputError, match="changed since"):
        read_shard(shard)


def test_parquet_with_invalid_unicode_and_nulls(tmp_path):
    raw = pa.array([b"ok", b"\xff\xfe", None, b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    pq.write_table(pa.table({"id": ["1", "2", "3", "4"], "text": text}), tmp_path / "a.parquet")
    shards = scan(str(tmp_path)).shards
    records, rejects = read_shard(shards[0])
    assert records["id"].to_pylist() == ["1", "4"]
    assert [(r.line, r.reason.value) for r in rejects] == [
        (2, "invalid_unicode"),
        (3, "missing_text"),
    ]
