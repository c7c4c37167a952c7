"""Input from outside: malformed, generated against an oracle, hostile; filter values; secrets; open
clusters.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import random
import shutil
import socket
import string
import sys
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import vault
from checkpoints import make_checkpoint
from faults import (
    LIGHT_SHAPE,
    Outcome,
    chance_of,
    end_descendants,
    finish,
    head_node,
    light_build,
    make_workbench,
    said,
    start,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from danbooru_index.choices import Mode
from danbooru_index.cli.entry import main as command
from danbooru_index.config import Filter, Weights
from danbooru_index.errors import DanbooruIndexError, UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import read_record, read_records, record_path
from danbooru_index.index.publish import prune, rollback
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.status import status, verify
from danbooru_index.ingest.scan import scan
from danbooru_index.ingest.shards import read_shard
from danbooru_index.prepare_config import RejectLimit
from danbooru_index.records import INVISIBLE
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.filters import allowed
from danbooru_index.search.retriever import query_of
from danbooru_index.search.tag_index import TagIndex
from danbooru_index.storage.base import from_checked_json, to_checked_json

# ---- malformed shards, generated records ----


def _parquet(columns, **options):
    def make(path, chance):
        pq.write_table(pa.table(columns), path, **options)

    return make


def _bytes(content):
    return lambda path, chance: path.write_bytes(content)


def _damaged(change):
    """A whole Parquet file, then damaged."""

    def make(path, chance):
        rows = 200
        table = pa.table(
            {
                "id": [str(n) for n in range(rows)],
                "text": [f"【通用】tag_{n} - 标签" for n in range(rows)],
            }
        )
        pq.write_table(table, path, row_group_size=50)
        path.write_bytes(change(bytearray(path.read_bytes()), chance))

    return make


def _flip(start, stop):
    def change(content, chance):
        at = chance.randrange(int(start * len(content)), int(stop * len(content)))
        content[at] ^= 1 << chance.randrange(8)
        return content

    return change


def _cut(share):
    return lambda content, chance: content[: int(share * len(content))]


def _raw(values, kind):
    return pa.array(values, kind)


BAD_TEXT = pa.StringArray.from_buffers(
    2, pa.py_buffer(np.array([0, 2, 4], np.int32).tobytes()), pa.py_buffer(b"\xff\xfeok")
)
MALFORMED = {
    "empty file": _bytes(b""),
    "text": _bytes(b"id,text\n1,a\n"),
    "only the magic": _bytes(b"PAR1PAR1"),
    "zeros": _bytes(bytes(4096)),
    "random bytes": lambda path, chance: path.write_bytes(chance.randbytes(5000)),
    "a gzip file": _bytes(b"\x1f\x8b\x08\x00" + bytes(100)),
    "encrypted footer": _bytes(b"PARE" + bytes(64) + b"PARE"),
    "footer longer than the file": _bytes(b"PAR1" + bytes(20) + b"\xff\xff\xff\x7fPAR1"),
    **{f"cut to {share:.0%}": _damaged(_cut(share)) for share in (0.1, 0.5, 0.9, 0.99)},
    **{f"flipped in its {part}": _damaged(_flip(a, b)) for part, a, b in (
        ("head", 0.0, 0.05), ("first pages", 0.05, 0.3), ("middle", 0.3, 0.6), ("last pages", 0.6, 0.7),
        ("footer", 0.75, 0.98), ("last bytes", 0.98, 1.0),
    )},
    "no text": _parquet({"id": ["1"]}),
    "no id": _parquet({"text": ["a"]}),
    "no row": _parquet({"id": _raw([], pa.string()), "text": _raw([], pa.string())}),
    "ids are floats": _parquet({"id": [1.5, 2.0], "text": ["a", "b"]}),
    "ids are booleans": _parquet({"id": [True, False], "text": ["a", "b"]}),
    "ids are dates": _parquet({"id": _raw([1, 2], pa.date32()), "text": ["a", "b"]}),
    "ids are lists": _parquet({"id": [["1"], ["2"]], "text": ["a", "b"]}),
    "ids are null": _parquet({"id": pa.nulls(2), "text": ["a", "b"]}),
    "ids are bytes": _parquet({"id": _raw([b"\xff", b"1"], pa.binary()), "text": ["a", "b"]}),
    "ids are large strings": _parquet({"id": _raw(["1", "2"], pa.large_string()), "text": ["a", "b"]}),
    "ids are a dictionary": _parquet({"id": pa.array(["1", "2", "1"]).dictionary_encode(), "text": ["a", "b", "c"]}),
    "ids are unsigned": _parquet({"id": _raw([2**64 - 1, 1], pa.uint64()), "text": ["a", "b"]}),
    "texts are numbers": _parquet({"id": ["1", "2"], "text": [1, 2]}),
    "texts are structs": _parquet({"id": ["1"], "text": [{"a": 1}]}),
    "texts are not UTF-8": _parquet({"id": ["1", "2"], "text": BAD_TEXT}),
    "texts are null": _parquet({"id": ["1", "2"], "text": _raw([None, None], pa.string())}),
    "counts are text": _parquet({"id": ["1", "2"], "text": ["a", "b"], "post_count": ["x", "3"]}),
    "counts are NaN": _parquet({"id": ["1"], "text": ["a"], "post_count": [float("nan")]}),
    "counts are decimals": _parquet({"id": ["1"], "text": ["a"], "post_count": _raw([1], pa.decimal128(5, 2))}),
    "aliases are numbers": _parquet({"id": ["1"], "text": ["a"], "aliases": [[1, 2]]}),
    "times that Python lacks": _parquet({"id": ["1"], "text": ["a"], "nsfw": _raw([2**62], pa.timestamp("us"))}),
    "metadata is text": _parquet({"id": ["1"], "text": ["a"], "metadata": ["{"]}),
    "every id the same": _parquet({"id": ["1"] * 50, "text": [f"t{n}" for n in range(50)]}),
    "two columns called id": lambda path, chance: pq.write_table(
        pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"]), pa.array(["a"])], names=["id", "id", "text"]), path
    ),
}  # fmt: skip


def _run(*words) -> tuple[int, str]:
    """One command in this process: its exit code and what it said on stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = command([str(word) for word in words])
    return code, err.getvalue().strip()


def bad_input(seed_: int, count: int, folder: Path) -> Outcome:
    """Malformed shards, read as a build reads them and as `prepare` does; then records against an
    oracle.
    """
    outcome = Outcome()
    names = (
        list(MALFORMED) if count >= 1000 else chance_of(seed_, "bad").sample(list(MALFORMED), 15)
    )
    for number, name in enumerate(names):
        place = folder / f"shards{number}"
        place.mkdir()
        MALFORMED[name](place / "a.parquet", chance_of(seed_, "bad", name))
        _malformed(outcome, place, name)
    _generated(outcome, seed_, count, folder)
    return outcome


def _malformed(outcome, place, name):
    outcome.add("malformed shards")
    try:
        read = kept = 0
        for shard in scan(str(place)).shards:
            records, rejects = read_shard(shard)
            read, kept = read + shard.rows, kept + records.num_rows + len(rejects)
        outcome.expect(read == kept, f"{name}: {read} rows, {kept} accounted for")
    except DanbooruIndexError as error:
        outcome.expect(str(place) in str(error) and "\n" not in str(error), f"{name}: {error}")
    except Exception as error:
        outcome.problems.append(f"{name}: build would show {type(error).__name__}: {error}")
    try:
        code, words = _run("prepare", place, "--out", place.with_name(f"{place.name}-out"))
    except Exception as error:
        outcome.problems.append(f"{name}: prepare shows {type(error).__name__}: {error}")
        return
    outcome.expect(
        code in (0, 1, 3) and len(words.splitlines()) <= 1, f"{name}: {code}: {words[-300:]}"
    )


SURROGATES = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", " ", "\u3000", "a", "1"]),
    st.text(SURROGATES, min_size=1, max_size=2),
)
VALUES = st.one_of(
    TEXTS, TEXTS, st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(),
    st.lists(TEXTS, max_size=2), st.lists(st.integers(), max_size=2), st.dictionaries(TEXTS, TEXTS, max_size=1),
)  # fmt: skip
FIELDS = ("tag", "category", "source", "post_count", "aliases", "nsfw", "rating", "deprecated")
METADATA = st.dictionaries(st.sampled_from(FIELDS), VALUES)
OPTIONAL = {"id": VALUES, "text": VALUES, "metadata": METADATA} | dict.fromkeys(FIELDS, VALUES)
RECORDS = st.fixed_dictionaries({}, optional=OPTIONAL)
FIRST = '{"id": 41, "text": "a"}'  # makes records of the lines, not rows of a table
GOOD = st.fixed_dictionaries({"id": st.integers(0, 40), "text": st.text(min_size=1, max_size=5)})
LINES = st.one_of(
    RECORDS.map(json.dumps),
    GOOD.map(json.dumps),
    st.sampled_from(["{", "[]", "1", "null", '{"id":', "NaN"]),
)


def _generated(outcome, seed_, count, folder):
    done = [0]

    @seed(seed_)
    @settings(
        max_examples=max(5, count // 5),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(LINES, min_size=5, max_size=9))
    def agree(lines):
        lines = [FIRST, *lines]
        done[0] += len(lines)
        path = folder / "any.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        out = folder / "any"
        shutil.rmtree(out, ignore_errors=True)
        code, _ = _run("prepare", path, "--out", out)
        expected = judge(lines)
        wanted = sum(not reasons for reasons in expected)
        rejects = {}
        if (out / "rejects.jsonl").exists():
            for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines():
                rejects[json.loads(line)["line"]] = json.loads(line)["reason"]
        for number, reasons in enumerate(expected, start=1):
            if bool(reasons) != (number in rejects) or (reasons and rejects[number] not in reasons):
                raise AssertionError(
                    f"{lines[number - 1]}: {rejects.get(number)}, the oracle says"
                    f" {reasons or 'good'}"
                )
        rows = sum(pq.read_metadata(p).num_rows for p in out.glob("*.parquet"))
        if rows != wanted or code != (3 if rejects else 0):
            raise AssertionError(f"{rows} rows of {wanted}, exit {code}")

    try:
        agree()
    except AssertionError as error:
        outcome.problems.append(str(error)[:600])
    outcome.add("generated records", done[0])


def judge(lines: list[str]) -> list[set[str]]:
    """The oracle: for each line the reasons for which it may be rejected; none where it must be
    kept.
    """
    seen: set[str] = set()
    answers = []
    for line in lines:
        reasons = _faults(line)
        if not reasons:
            record_id = str(json.loads(line)["id"])
            reasons = {"duplicate_id"} if record_id in seen else set()
            seen.add(record_id)
        answers.append(reasons)
    return answers


def _faults(line):
    try:
        fields = json.loads(line, parse_constant=lambda name: None)
    except ValueError:
        return {"unparsable_line"}
    if not isinstance(fields, dict):
        return {"unparsable_line"}
    found = {_key_fault(fields.get(name), name) for name in ("id", "text")}
    found.add(_category_fault(fields.get("category")))
    extra = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else {}
    nsfw_given = (
        fields.get("nsfw") if fields.get("nsfw") is not None else extra.get("nsfw")
    ) is not None
    for name in FIELDS:
        if name == "rating" and nsfw_given:
            continue
        value = fields.get(name)
        found.add(_fault(extra.get(name) if value is None else value, name))
    return found - {""}


def _key_fault(value, name):
    if value is None:
        return f"missing_{name}"
    if name == "id" and type(value) is int:
        return ""
    if not isinstance(value, str):
        return "wrong_type"
    return f"empty_{name}" if all(map(_shows_nothing, value)) else _surrogate(value)


def _shows_nothing(letter):
    return letter in INVISIBLE or unicodedata.category(letter) in ("Cc", "Cf", "Zs", "Zl", "Zp")


def _fault(value, name):
    if value is None:
        return ""
    if name in ("nsfw", "deprecated"):
        return "" if isinstance(value, bool) or value in (0, 1) else "wrong_type"
    if name == "post_count":
        return _count_fault(value)
    if name == "aliases":
        if isinstance(value, str):
            return _surrogate(value)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return "wrong_type"
        return next((fault for item in value if item.strip() and (fault := _surrogate(item))), "")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return "wrong_type"
    return _surrogate(str(value))


def _category_fault(value):
    """A number that Danbooru has no category for."""
    unknown = type(value) is int and value not in (0, 1, 3, 4, 5)
    return "unknown_category" if unknown else ""


def _count_fault(value):
    if value == "":
        return ""
    try:
        number = int(value) if not isinstance(value, bool) else None
    except (ValueError, TypeError, OverflowError):
        return "wrong_type"
    if number is None or (isinstance(value, float) and value != number) or abs(number) >= 2**63:
        return "wrong_type"
    return ""


def _surrogate(text):
    return "invalid_unicode" if any("\ud800" <= letter <= "\udfff" for letter in text) else ""


# ---- hostile files ----


class Evil:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark):
        self._mark = str(mark)

    def __reduce__(self):
        return open, (self._mark, "w")


def _torch_zip(mark):
    """What `torch.save` writes, with a pickle of ours inside."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Evil(mark)}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


def _pickled_weights(model, mark):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(_torch_zip(mark))


def _outside_weights(model, mark):
    outside = mark.with_name("outside.bin")
    outside.write_bytes(_torch_zip(mark))
    (model / "model.safetensors").unlink()
    index = {
        "metadata": {},
        "weight_map": {"embeddings.word_embeddings.weight": f"../{outside.name}"},
    }
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _config(name, **fields):
    def change(model, mark):
        path = model / name
        (model / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
        path.write_text(
            json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields)
        )

    return change


def _code_files(model, mark):
    for name in (
        "sitecustomize.py",
        "modeling_xlm_roberta.py",
        "tokenization_xlm_roberta.py",
        "__init__.py",
        "torch.py",
    ):
        (model / name).write_text(f"open({str(mark)!r}, 'w')\n")


def _replaced(name, content):
    return lambda model, mark: (model / name).write_bytes(content(mark))


CHECKPOINTS = {
    "a pickle as the sparse head": _replaced(
        "sparse_linear.pt", lambda mark: pickle.dumps(Evil(mark))
    ),
    "a pickle as the ColBERT head": _replaced(
        "colbert_linear.pt", lambda mark: pickle.dumps(Evil(mark))
    ),
    "a pickle in the archive of the sparse head": _replaced("sparse_linear.pt", _torch_zip),
    "a pickle in the archive of the ColBERT head": _replaced("colbert_linear.pt", _torch_zip),
    "a pickle in the archive of the weights": _pickled_weights,
    "weights from outside the folder": _outside_weights,
    "a configuration with code": _config("config.json", auto_map={"AutoModel": "evil.Evil"}),
    "a tokenizer with code": _config(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    ),
    "a tokenizer class of its own": _config("tokenizer_config.json", tokenizer_class="evil.Evil"),
    "a template with code": _config(
        "tokenizer_config.json", chat_template="{{ cycler.__init__.__globals__.os.system('x') }}"
    ),
    "a pipeline with code": _config("config.json", custom_pipelines={"x": {"impl": "evil.Evil"}}),
    "modules with code": _config("modules.json", modules=[{"type": "evil.Evil"}]),
    "Python files in the folder": _code_files,
    "a weights file that is a pickle": _replaced(
        "model.safetensors", lambda mark: pickle.dumps(Evil(mark))
    ),
    "a tokenizer that is a pickle": _replaced(
        "tokenizer.json", lambda mark: pickle.dumps(Evil(mark))
    ),
    "a negative size": _config("config.json", hidden_size=-1),
}


def _extension(name, metadata, column):
    """A column of an extension type, as a file made elsewhere would declare it."""

    def make(path, mark):
        content = pickle.dumps(Evil(mark))
        field = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": metadata(mark)}
        arrays = {"id": pa.array(["1"]), "text": pa.array(["a"]), "aliases": pa.array([["x"]])}
        arrays[column] = pa.array([content], pa.large_binary())
        fields = [
            pa.field(key, value.type, metadata=field if key == column else None)
            for key, value in arrays.items()
        ]
        pq.write_table(pa.table(list(arrays.values()), schema=pa.schema(fields)), path)

    return make


def _behind_padding(path, mark):
    """The same declaration, behind more metadata than a reader looks through."""
    field = {
        b"ARROW:extension:name": b"ray.data.arrow_pickled_object",
        b"ARROW:extension:metadata": b"",
    }
    values = [
        pa.array(["1"]),
        pa.array(["a"]),
        pa.array([pickle.dumps(Evil(mark))], pa.large_binary()),
    ]
    names = ["id", "text", "aliases"]
    kinds = zip(names, values, (None, None, field), strict=True)
    schema = pa.schema(
        [pa.field(name, value.type, metadata=declared) for name, value, declared in kinds]
    )
    with pq.ParquetWriter(path, schema.remove_metadata(), store_schema=False) as writer:
        serialized = base64.b64encode(schema.serialize()).decode()
        writer.add_key_value_metadata({"padding": "-" * (70 << 20), "ARROW:schema": serialized})
        writer.write_table(pa.table(values, schema=schema).replace_schema_metadata(None))


def _pandas(path, mark):
    table = pa.table({"id": ["1"], "text": ["a"]})
    note = {
        "columns": [{"name": "id", "metadata": {"__reduce__": str(mark)}}],
        "index_columns": ["__import__('os')"],
    }
    pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(note).encode()}), path)


def _evil_bytes(mark):
    return pickle.dumps(Evil(mark))


PARQUETS = {
    "pickled objects of Ray as ids": _extension(
        b"ray.data.arrow_pickled_object", lambda mark: b"", "id"
    ),
    "pickled objects of Ray as texts": _extension(
        b"ray.data.arrow_pickled_object", lambda mark: b"", "text"
    ),
    "pickled objects of Ray as aliases": _extension(
        b"ray.data.arrow_pickled_object", lambda mark: b"", "aliases"
    ),
    "a tensor of Ray with a pickled shape": _extension(
        b"ray.data.arrow_tensor_v2", _evil_bytes, "text"
    ),
    "a ragged tensor of Ray": _extension(
        b"ray.data.arrow_variable_shaped_tensor", _evil_bytes, "text"
    ),
    "an extension type of old pyarrow": _extension(b"arrow.py_extension_type", _evil_bytes, "text"),
    "an extension type of nobody": _extension(b"evil.type", _evil_bytes, "id"),
    "pickled objects of Ray behind 70 MB of padding": _behind_padding,
    "metadata of pandas": _pandas,
}


def _in_current(index, mark):
    body = {"generation": "../../outside", "versions": {}, "published_at": 0}
    (index / "CURRENT.json").write_bytes(to_checked_json(body))


def _deep(index, mark):
    (index / "CURRENT.json").write_text("[" * 100_000)


def _in_manifest(**fields):
    def change(index, mark):
        path = IndexRoot(index).current().path.local_path() / "manifest.json"
        path.write_bytes(to_checked_json(from_checked_json(path.read_bytes()) | fields))

    return change


def _in_record(change_record):
    """A completion record of a valid checksum that names files elsewhere; and an unfinished
    generation to go on with.
    """

    def change(index, mark):
        generation = IndexRoot(index).current()
        record, _ = read_record(generation.path, generation.manifest.shards[0])
        change_record(record, mark)
        record_path(generation.path, generation.manifest.shards[0]).local_path().write_bytes(
            record.to_bytes()
        )
        replace(generation, manifest=replace(generation.manifest, seal=None)).save()

    return change


def _path_outside(record, mark):
    record.tables["dense"].fragments[0]["files"][0]["path"] = f"../../../../{mark.name}.lance"


def _shard_outside(record, mark):
    record.shard = "../../../x"


def _checksum_outside(record, mark):
    record.tables["sparse"].checksums = {"../../../../etc/passwd": "0"}


INDEXES = {
    "a published generation outside the root": _in_current,
    "a document nested without end": _deep,
    "shards outside the root": _in_manifest(shards=["../../../outside"]),
    "failed shards outside the root": _in_manifest(failed_shards=["/etc/passwd"]),
    "files outside the root": _in_manifest(files={"../../outside/canary": "0"}),
    "numbers that are text": _in_manifest(dim="16; import os"),
    "shards that are no list": _in_manifest(shards={"a": 1}),
    "a compaction outside the root": _in_manifest(
        compacted={
            "dense": {
                "fragments": [{"files": [{"path": "../../../x.lance", "file_size_bytes": 1}]}]
            }
        }
    ),
    "a compaction of checksums outside the root": _in_manifest(
        compacted={"sparse": {"checksums": {"../../../../etc/passwd": "0"}}}
    ),
    "a compaction without files": _in_manifest(compacted={"dense": {"fragments": [{}]}}),
    "a compaction that is a number": _in_manifest(compacted={"dense": 3}),
    "a fragment outside the root": _in_record(_path_outside),
    "a shard outside the root": _in_record(_shard_outside),
    "a checksum of a file outside the root": _in_record(_checksum_outside),
}


def hostile(seed_: int, count: int, folder: Path) -> Outcome:
    """Files made to run code or to reach outside the index: nothing runs, nothing outside changes,
    one line is said.
    """
    import ray.data  # noqa: F401  registers Ray's own Arrow types, as in every worker

    outcome = Outcome()
    outside = folder / "outside"
    outside.mkdir()
    (outside / "canary").write_text("alive")
    base = folder / "base"
    model = make_checkpoint(folder / "model", LIGHT_SHAPE)
    vault.build(base, vault.shard_names(2), path=str(model))
    kinds = (
        [(CHECKPOINTS, n) for n in CHECKPOINTS]
        + [(PARQUETS, n) for n in PARQUETS]
        + [(INDEXES, n) for n in INDEXES]
    )
    if count < len(kinds):
        kinds = chance_of(seed_, "hostile").sample(kinds, count)
    for number, (family, name) in enumerate(kinds):
        mark = outside / f"mark{number}"
        place = folder / f"kind{number}"
        place.mkdir()
        use = {
            id(CHECKPOINTS): _use_checkpoint,
            id(PARQUETS): _use_parquet,
            id(INDEXES): _use_index,
        }[id(family)]
        try:
            refused = use(family[name], place, mark, base, model)
            outcome.add("refused" if refused else "harmless")
        except DanbooruIndexError as error:
            outcome.add("refused")
            outcome.expect("\n" not in str(error), f"{name}: {error}")
        except Exception as error:
            outcome.problems.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        outcome.add("kinds")
        outcome.expect(not mark.exists(), f"{name}: code ran")
    left = sorted(p.name for p in outside.iterdir() if p.name != "outside.bin")
    outcome.expect(
        left == ["canary"] and (outside / "canary").read_text() == "alive",
        f"outside the root: {left}",
    )
    return outcome


def _use_checkpoint(change, place, mark, base, model):
    from danbooru_index.model.checkpoint import resolve_model
    from danbooru_index.model.encoder import Encoder
    from danbooru_index.model.tokenizer import Tokenizer

    path = Path(shutil.copytree(model, place / "model"))
    change(path, mark)
    resolve_model(str(path))
    tokens = Tokenizer(str(path), 512)(["猫耳", "cat ears"])
    Encoder(str(path)).encode(tokens)
    return False


def _use_parquet(make, place, mark, base, model):
    make(place / "a.parquet", mark)
    code, _ = _run("prepare", place, "--out", place / "out")
    for shard in scan(str(place / "a.parquet")).shards:
        read_shard(shard)
    return code != 0


def _use_index(change, place, mark, base, model):
    index = Path(shutil.copytree(base, place / "index"))
    change(index, mark)
    refused = 0
    for use in (status, verify, _search, _go_on, _roll_back, _prune):
        try:
            refused += bool(getattr(use(str(index)), "problems", False))
        except DanbooruIndexError:
            refused += 1
    return bool(refused)


def _search(index):
    with TagIndex.open(index) as tags:
        tags.search("猫耳")


def _go_on(index):
    for generation in IndexRoot(index).generations():
        read_records(
            generation.path, generation.manifest.shards, generation.manifest.fingerprint_digest
        )
    vault.build(Path(index), vault.shard_names(2), model="z")


def _roll_back(index):
    rollback(IndexRoot(index))


def _prune(index):
    prune(IndexRoot(index), 1, grace_s=0)


# ---- filters ----

SPICE = [
    "'",
    '"',
    "''",
    "' OR 1=1 --",
    '" OR ""="',
    "\\",
    "%",
    "_",
    ";",
    "NULL",
    "true",
    "$1",
    "{}",
    "category",
    "\x00",
    "\n",
]
SPICE += ["猫", "*"]


def filters(seed_: int, count: int, folder: Path) -> Outcome:
    """Values made to escape: each answers with exactly the rows that equal it, or is refused by
    name.
    """
    outcome = Outcome()
    chance = chance_of(seed_, "filters")
    index = folder / "index"
    vault.build(index, vault.shard_names(2), 40, categories=[_spiced(chance) for _ in range(12)])
    reader = GenerationReader(IndexRoot(index).current())
    table = vault.dense_rows(index)
    categories = [row["category"] for row in table]
    counts = np.array([-1 if row["post_count"] is None else row["post_count"] for row in table])
    nsfw = np.array([row["nsfw"] for row in table])
    query = query_of(vault.make_encoding(1), 0)
    for number in range(count):
        value = chance.choice(categories) if number % 3 == 0 else _spiced(chance)
        least = chance.choice([None, 0, chance.randrange(0, 2_000_000), 2**62])
        try:
            wanted = Filter((value,), least, chance.random() < 0.5)
            among = allowed(reader.files, wanted)
            rows = (
                DenseRetriever(reader).candidates(query, 80, among)[0]
                if among.mask.any()
                else np.array([])
            )
            found, mask = set(rows.tolist()), among.mask
        except UsageError:
            outcome.add("refused by name")
            outcome.expect(value not in categories, f"refused, though it is there: {value!r}")
            continue
        except Exception as error:
            outcome.problems.append(f"{value!r}: {type(error).__name__}: {str(error)[:200]}")
            continue
        expected = np.array([name == value for name in categories]) & (
            counts >= (least or 0) if least is not None else True
        )
        expected = expected & (True if wanted.nsfw else ~nsfw)
        outcome.add("answered")
        outcome.expect((mask == expected).all(), f"{value!r} lets other rows through")
        outcome.expect(
            found == set(np.flatnonzero(expected).tolist()),
            f"{value!r}: the dense search gives {len(found)} rows",
        )
    for _ in range(count // 10):
        for parse in (Weights.parse, RejectLimit.parse, Mode.parse):
            with contextlib.suppress(UsageError):
                parse(_spiced(chance))
    outcome.add("values", count)
    return outcome


def _spiced(chance: random.Random) -> str:
    letters = [chance.choice(string.ascii_lowercase) for _ in range(chance.randrange(0, 4))]
    return "".join(letters) + "".join(chance.choice(SPICE) for _ in range(chance.randrange(1, 4)))


# ---- secrets, open clusters ----

SECRETS = {
    "HF_TOKEN": "hf_chaosSecretToken123",
    "AWS_SECRET_ACCESS_KEY": "chaosAwsSecret456",
    "RAY_AUTH_TOKEN": "c0ffee" * 10,
}


def secrets_and_clusters(seed_: int, count: int, folder: Path) -> Outcome:
    """No secret in what a build prints, stores or logs; no work on a head that strangers can
    command; a private token.
    """
    outcome = Outcome()
    bench = make_workbench(folder, shard_rows=156)
    session = Path(os.environ["RAY_TMPDIR"])
    process = start(
        light_build(bench, bench.index("index")), env={**SECRETS, "RAY_AUTH_MODE": "token"}
    )
    outcome.expect(finish(process) == 0, said(process)[-500:])
    places = [*bench.index("index").rglob("*"), *session.rglob("*"), process.out, process.err]
    for path in places:
        if path.is_file() and not path.is_socket():
            content = path.read_bytes()
            outcome.add("files searched for secrets")
            for name, secret in SECRETS.items():
                outcome.expect(secret.encode() not in content, f"{name} is in {path}")
    end_descendants()
    own = _own_address()
    heads = (("disabled", own, True), ("disabled", "127.0.0.1", False), ("token", own, False))
    for mode, node, refused in heads[:count]:
        if not node:
            outcome.add("no address beyond loopback here")
            continue
        env = {"RAY_AUTH_MODE": mode} | (
            {"RAY_AUTH_TOKEN": SECRETS["RAY_AUTH_TOKEN"]} if mode == "token" else {}
        )
        with head_node(node=node, env=env) as address:
            name = f"{mode}-{node}"
            process = start(light_build(bench, bench.index(name), "--address", address), env=env)
            code, words = finish(process), said(process)
            outcome.add("clusters")
            outcome.expect(
                (code == 1) if refused else (code == 0), f"{name}: exit {code}: {words[-500:]}"
            )
            outcome.expect(("asks for no token" in words) == refused, f"{name}: {words[-500:]}")
        end_descendants()
    token = Path(os.environ["HOME"]) / ".ray/auth_token"
    token.parent.mkdir(exist_ok=True)
    token.write_text(SECRETS["RAY_AUTH_TOKEN"])
    token.chmod(0o644)
    from danbooru_index.cluster.security import protect_token

    with contextlib.redirect_stderr(io.StringIO()):
        protect_token()
    outcome.expect(token.stat().st_mode & 0o777 == 0o600, "the token file is readable by others")
    return outcome


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return ""


if __name__ == "__main__":
    sys.exit("run it by tests/chaos/chaos.py")
