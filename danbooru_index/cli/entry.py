"""The command line: one command, one verb per capability. Parses, calls, prints, and ends with the exit code.

Exit 0 done; 1 a problem the message explains; 2 wrong usage; 3 published, but some records or shards were left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from danbooru_index.config import (
    BASELINE_RECORDS,
    DEFAULT_MAX_LENGTH,
    DEFAULT_MIN_FIDELITY,
    DEFAULT_SHARD_ROWS,
    BuildConfig,
    Device,
    Mode,
    Precision,
    PrepareConfig,
    RejectLimit,
    Weights,
)
from danbooru_index.errors import DanbooruIndexError, UsageError
from danbooru_index.signals import bounded_stops, terminable
from danbooru_index.versions import check_versions

STOPPED = "stopped; nothing is lost: run the same command to go on"
Command = Callable[[argparse.Namespace, TextIO], int]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits 2."""

    def error(self, message: str) -> NoReturn:
        query = "; a query that begins with - goes after --" if message.endswith("QUERY") else ""
        raise UsageError(f"{message} (see {self.prog} --help{query})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Only this project's errors are caught: one line on stderr."""

    def run() -> int:
        _open_closed_streams()
        parsed = _parser().parse_args(arguments)
        if parsed.command is not _doctor:  # which says more
            check_versions()
        with _stdout_for_results() as out, bounded_stops(f"danbooru-index: {STOPPED}"), terminable():
            command: Command = parsed.command
            return command(parsed, out)

    return guarded(run)


def _open_closed_streams() -> None:
    """Streams that the caller has closed lead nowhere; what a stream cannot write in its encoding is escaped."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def guarded(run: Callable[[], int]) -> int:
    """The exit code of `run`, or of what it raises, said in one line on stderr."""
    try:
        return run()
    except DanbooruIndexError as error:
        print(f"danbooru-index: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"danbooru-index: {STOPPED}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"danbooru-index: {where}{error.strerror or ' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 1
    except UnicodeError as error:
        print(
            f"danbooru-index: a name or a text is not valid UTF-8 ({error.reason if hasattr(error, 'reason') else error})",
            file=sys.stderr,
        )
        return 1


def entry(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code.

    At once, without the interpreter's own teardown: there, threads of Ray and Lance that a stop has left running
    crashed 1 in 10 stopped builds after their last line (measured). Ray is shut down by then.
    """
    code = main(arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[TextIO]:
    """Results go to the real stdout; whatever a library prints there meanwhile goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    out = os.fdopen(saved, "w", encoding="utf-8", errors="replace", closefd=False)
    os.dup2(2, 1)
    try:
        yield out
    finally:
        with contextlib.suppress(BrokenPipeError):
            out.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="danbooru-index",
        description="Turn a Danbooru tag dump into a searchable BGE-M3 index.",
        epilog="danbooru-index VERB --help shows an example of each verb.",
    )
    from danbooru_index import __version__

    parser.add_argument("--version", action="version", version=f"danbooru-index {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (
        _add_prepare,
        _add_build,
        _add_rebuild,
        _add_search,
        _add_status,
        _add_verify,
        _add_rollback,
        _add_prune,
        _add_evaluate,
        _add_finetune,
        _add_benchmark,
        _add_doctor,
    ):
        add(verbs)
    return parser


def _verb(verbs: Any, name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _add_rejects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strict", action="store_true", help="stop with 1 at rejected records, before anything is made"
    )
    parser.add_argument(
        "--max-rejects",
        default="0",
        metavar="N|P%",
        help="up to this many rejected records (or this share) exit 0 instead of 3 (default 0)",
    )


def _add_prepare(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "prepare",
        _prepare,
        "Write tag dumps (.jsonl, .csv, .parquet, also .gz and .zst; files or folders) as Parquet shards.",
        "danbooru-index prepare danbooru.csv --translations zh.csv --out shards/",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--shard-rows", type=int, default=DEFAULT_SHARD_ROWS, metavar="N", help="(default %(default)s)")
    parser.add_argument("--translations", metavar="FILE", help="CSV, tag,text: explanations for CSV records")
    _add_rejects(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="hub name or folder (default BAAI/bge-m3 on a GPU, else m3-mini)"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="use at most N GPUs (default all)")
    parser.add_argument("--precision", default="auto", metavar="auto|fp32|bf16|fp16")
    parser.add_argument(
        "--max-length", type=int, default=DEFAULT_MAX_LENGTH, metavar="N", help="tokens a text (default %(default)s)"
    )
    parser.add_argument("--tokens-per-batch", type=int, metavar="N", help="tokens a device call (default: from memory)")
    parser.add_argument(
        "--colbert-dim",
        type=int,
        metavar="N",
        help="project ColBERT vectors to N values (default: in full)",
    )
    parser.add_argument(
        "--min-fidelity",
        type=float,
        default=DEFAULT_MIN_FIDELITY,
        metavar="SHARE",
        help="refuse a projection that finds less than this share of the full top 10 again (default %(default)s)",
    )
    parser.add_argument("--query-instruction", default="", metavar="TEXT", help="put before every query (default none)")
    parser.add_argument("--address", metavar="RAY", help="a running Ray cluster, such as auto (default: start one)")
    parser.add_argument("--allow-failed-shards", action="store_true", help="publish without failed shards, exit 3")
    _add_rejects(parser)


def _add_build(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "build",
        _build,
        "Embed Parquet shards under Ray and publish the index; goes on from completed shards.",
        "danbooru-index build shards/ --index my-index --model BAAI/bge-m3",
    )
    parser.add_argument("shards", metavar="SHARDS", help="a folder, a glob or a Parquet file")
    parser.add_argument("--index", required=True)
    _add_model_options(parser)


def _add_rebuild(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "rebuild",
        _rebuild,
        "Prepare, build, check and publish in one go, then prune; for a schedule.",
        "danbooru-index rebuild /data/danbooru.csv --index my-index --keep 3",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--index", required=True)
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="generations to keep (default %(default)s)")
    parser.add_argument("--shard-rows", type=int, default=DEFAULT_SHARD_ROWS, metavar="N", help="(default %(default)s)")
    parser.add_argument("--translations", metavar="FILE", help="CSV, tag,text: explanations for CSV records")
    _add_model_options(parser)


def _add_query_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", default="0.4,0.2,0.4", metavar="D,S,C", help="of a hybrid score (default %(default)s)"
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="where the model that built the index is now")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")


def _add_search(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "search",
        _search,
        "Find tags by meaning, in Chinese, English or Japanese.",
        "danbooru-index search my-index 穿水手服的女孩 --limit 5",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "query", metavar="QUERY", help="`-` reads one query a line from stdin; --json then prints one document a line"
    )
    parser.add_argument("--mode", default="hybrid", metavar="dense|sparse|colbert|hybrid")
    _add_query_options(parser)
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="(default %(default)s)")
    parser.add_argument(
        "--category", action="append", default=[], metavar="NAME", help="only of this category (may be repeated)"
    )
    parser.add_argument("--min-post-count", type=int, metavar="N", help="only tags with at least N posts")
    parser.add_argument("--nsfw", action="store_true", help="also answer with tags that are not safe for work")


def _add_status(verbs: Any) -> None:
    summary = "What is published, what is unfinished, by which model."
    _verb(verbs, "status", _status, summary, "danbooru-index status my-index").add_argument("index", metavar="INDEX")


def _add_verify(verbs: Any) -> None:
    summary = "Reread every row of the published generation: counts, digests, non-finite values."
    _verb(verbs, "verify", _verify, summary, "danbooru-index verify my-index").add_argument("index", metavar="INDEX")


def _add_rollback(verbs: Any) -> None:
    summary = "Publish the generation before the current one again."
    _verb(verbs, "rollback", _rollback, summary, "danbooru-index rollback my-index").add_argument(
        "index", metavar="INDEX"
    )


def _add_prune(verbs: Any) -> None:
    summary = "Delete old generations; never the published one, nor one replaced less than 15 minutes ago."
    parser = _verb(verbs, "prune", _prune, summary, "danbooru-index prune my-index --keep 3")
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="generations to keep (default %(default)s)")


def _add_evaluate(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "evaluate",
        _evaluate,
        "Recall, nDCG, mAP and MRR of an index over a queries file, by mode and by kind, beside BM25 and TF-IDF.",
        "danbooru-index evaluate my-index queries.jsonl --against another-index --picture quality.svg",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("queries", metavar="QUERIES", help='{"query": "...", "relevant": ["tag"], "kind": "zh"} a line')
    parser.add_argument("--mode", default="all", metavar="all|dense|sparse|colbert|hybrid")
    _add_query_options(parser)
    parser.add_argument("--against", metavar="INDEX2", help="another index, to compare with: base against tuned")
    parser.add_argument(
        "--query-instruction", metavar="TEXT", help="put before every query of INDEX (default: its own)"
    )
    parser.add_argument("--no-baselines", action="store_true", help="without BM25 and character TF-IDF")
    parser.add_argument("--ablation", action="store_true", help="also hybrid without each of its three parts")
    parser.add_argument("--picture", metavar="FILE", help="draw Recall@10 and mAP@10 (.svg or .png)")


def _add_finetune(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "finetune",
        _finetune,
        "Tune the model on tags (FlagEmbedding's M3 training, on every GPU or the CPU); goes on after a kill.",
        "danbooru-index finetune tags.jsonl --index my-index --held-out queries.jsonl --out tuned-model",
    )
    parser.add_argument(
        "pairs",
        metavar="PAIRS",
        help='{"query": "...", "pos": [...], "neg": [...]} a line; or a tag dump, to make them from',
    )
    parser.add_argument("--index", help="where hard negatives are mined")
    parser.add_argument("--out", required=True, metavar="MODEL", help="a new folder, in BGE-M3's format")
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="what to tune (default: the model that built the index)"
    )
    parser.add_argument(
        "--names", action="append", default=[], metavar="FILE", help='more names: {"tag": "...", "ja": "..."} a line'
    )
    parser.add_argument(
        "--held-out", action="append", default=[], metavar="QUERIES", help="queries that are never trained on"
    )
    numbers: tuple[tuple[str, type, float, str], ...] = (
        ("--lr", float, 1e-5, "learning rate"),
        ("--batch-size", int, 32, "queries a device and step"),
        ("--group-size", int, 8, "texts a query: its answer and negatives"),
        ("--epochs", float, 1.0, "times that every pair is seen"),
        ("--temperature", float, 0.02, "what scores are divided by"),
        ("--query-length", int, 64, "tokens a query"),
        ("--passage-length", int, 128, "tokens a text"),
        ("--save-steps", int, 200, "steps between checkpoints"),
        ("--mined-share", float, 0.7, "of the negatives; the others are drawn at random"),
        ("--seed", int, 0, "of order, negatives and dropout"),
    )
    for name, kind, default, what in numbers:
        parser.add_argument(name, type=kind, default=default, metavar="N", help=f"{what} (default %(default)s)")
    parser.add_argument("--ranks", default="2-20", metavar="A-B", help="of mined negatives (default %(default)s)")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="use at most N GPUs (default all)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--precision", default="auto", metavar="auto|fp32|bf16|fp16", help="mixed precision")
    parser.add_argument("--address", metavar="RAY", help="a running Ray cluster, such as auto (default: start one)")


def _add_benchmark(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "benchmark",
        _benchmark,
        "Measure this job against what you would use instead, here, as ratios; the last line is one JSON document.",
        "danbooru-index benchmark encoder job --model BAAI/bge-m3 --input tags.jsonl --rows 4096",
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="encoder (default), packing, colbert, job, overhead; with a simulated forward: device, overlap, scaling, shards",
    )
    parser.add_argument(
        "--against", default="flagembedding", metavar="flagembedding|nothing", help="(default %(default)s)"
    )
    parser.add_argument("--model", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument(
        "--precision",
        default="auto",
        metavar="auto|fp32|bf16|fp16",
        help="auto: encoder measures all that this device has, the other parts the one that build takes",
    )
    parser.add_argument(
        "--input", action="append", metavar="INPUT", help="a tag dump (default: the sample of 468 tags)"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="records of it (default 2048, on a GPU 65536)")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="rounds of each contestant (default %(default)s)"
    )


def _add_doctor(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "doctor",
        _doctor,
        "Check this installation: versions, device, model, a real encode, Ray, disk space; exit 1 where one is not right.",
        "danbooru-index doctor --model BAAI/bge-m3 --records 1386373 --path /data",
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="(default: what build would take here)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--precision", default="auto", metavar="auto|fp32|bf16|fp16")
    parser.add_argument("--records", type=int, default=BASELINE_RECORDS, metavar="N", help="(default %(default)s)")
    parser.add_argument("--path", default=".", metavar="DIR", help="where the index will be (default: here)")
    parser.add_argument("--address", metavar="RAY", help="a running Ray cluster, such as auto (default: start one)")


def _prepare(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.ingest.prepare import prepare

    limit = RejectLimit.parse(arguments.max_rejects)
    report = prepare(
        PrepareConfig(
            tuple(arguments.inputs),
            arguments.out,
            shard_rows=arguments.shard_rows,
            translations=arguments.translations,
            strict=arguments.strict,
            max_rejects=limit,
        )
    )
    _print(report, arguments.json, out)
    return 0 if limit.allows(sum(report.rejected.values()), report.read) else 3


def _build_config(arguments: argparse.Namespace, shards: str) -> BuildConfig:
    return BuildConfig(
        shards=shards,
        index=arguments.index,
        model=arguments.model,
        device=Device.parse(arguments.device),
        num_gpus=arguments.num_gpus,
        precision=Precision.parse(arguments.precision),
        max_length=arguments.max_length,
        tokens_per_batch=arguments.tokens_per_batch,
        strict=arguments.strict,
        max_rejects=RejectLimit.parse(arguments.max_rejects),
        address=arguments.address,
        allow_failed_shards=arguments.allow_failed_shards,
        query_instruction=arguments.query_instruction,
        colbert_dim=arguments.colbert_dim,
        min_fidelity=arguments.min_fidelity,
    )


def _build(arguments: argparse.Namespace, out: TextIO) -> int:
    config = _build_config(arguments, arguments.shards)
    from danbooru_index.pipeline.build import build, exit_code

    report = build(config)
    _print(report, arguments.json, out)
    return exit_code(report, config)


def _rebuild(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.pipeline.rebuild import RebuildConfig, rebuild

    report, code = rebuild(
        RebuildConfig(
            inputs=tuple(arguments.inputs),
            build=_build_config(arguments, ""),
            keep=arguments.keep,
            shard_rows=arguments.shard_rows,
            translations=arguments.translations,
        )
    )
    _print(report, arguments.json, out)
    return code


def _finetune(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.training.finetune import FinetuneConfig, finetune

    given = vars(arguments)
    plain = (
        "pairs out index model lr batch_size group_size epochs temperature query_length passage_length save_steps "
        "mined_share seed num_gpus address"
    )
    config = FinetuneConfig(
        **{name: given[name] for name in plain.split()},
        names=tuple(arguments.names),
        held_out=tuple(arguments.held_out),
        ranks=_ranks(arguments.ranks),
        device=Device.parse(arguments.device),
        precision=Precision.parse(arguments.precision),
    )
    _print(finetune(config), arguments.json, out)
    return 0


def _doctor(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.pipeline.doctor import DoctorConfig, doctor

    report = doctor(
        DoctorConfig(
            model=arguments.model,
            device=Device.parse(arguments.device),
            precision=Precision.parse(arguments.precision),
            records=arguments.records,
            path=arguments.path,
            address=arguments.address,
        )
    )
    _print(report, arguments.json, out)
    return 0 if report.healthy else 1


def _ranks(word: str) -> tuple[int, int]:
    first, _, last = word.partition("-")
    try:
        return int(first), int(last)
    except ValueError:
        raise UsageError(f"--ranks takes two ranks, such as 2-20, not {word!r}") from None


def _search(arguments: argparse.Namespace, out: TextIO) -> int:
    mode, weights = Mode.parse(arguments.mode), Weights.parse(arguments.weights)
    from danbooru_index.search.query import query_lines
    from danbooru_index.search.tag_index import TagIndex, format_hits

    with TagIndex.open(arguments.index, model=arguments.model, device=Device.parse(arguments.device)) as index:
        failed, headed = 0, False
        queries = query_lines(sys.stdin.buffer) if arguments.query == "-" else [(arguments.query, "")]
        for query, problem in queries:
            if problem:
                failed = 1
                print(f"danbooru-index: {problem}", file=sys.stderr)
                continue
            hits = index.search(
                query,
                mode=mode,
                limit=arguments.limit,
                weights=weights,
                category=arguments.category,
                min_post_count=arguments.min_post_count,
                nsfw=arguments.nsfw,
            )
            if arguments.json:
                built = index.generation.manifest.model
                named = {"model": built["name"], "model_id": built["id"]}
                answer = {"query": query, "mode": mode.value, **named, "hits": [hit.to_dict() for hit in hits]}
                print(json.dumps(answer, ensure_ascii=False), file=out, flush=True)
            else:
                if not headed:
                    headed = True
                    print(f"{arguments.index}, by {index.model}", file=out)
                print(format_hits(query, hits), file=out, flush=True)
    return failed


def _status(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.status import status

    _print(status(arguments.index), arguments.json, out)
    return 0


def _verify(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.status import verify

    report = verify(arguments.index)
    _print(report, arguments.json, out)
    return 1 if report.problems else 0


def _rollback(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.catalog import IndexRoot
    from danbooru_index.storage.local import owned

    root = IndexRoot(arguments.index)
    root.require()
    with owned(root.path):
        generation = root.rollback()
    _print_dict(
        {"generation": generation.id}, f"{root.path}: generation {generation.id} is published again", arguments, out
    )
    return 0


def _prune(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.index.catalog import IndexRoot
    from danbooru_index.storage.local import owned

    root = IndexRoot(arguments.index)
    root.require()
    with owned(root.path):
        deleted = root.prune(arguments.keep)
    said = f"{root.path}: deleted {', '.join(deleted)}" if deleted else f"{root.path}: nothing to delete"
    _print_dict({"deleted": deleted}, said, arguments, out)
    return 0


def _evaluate(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.evaluation.evaluate import EvaluateConfig, draw, evaluate

    picture = Path(arguments.picture) if arguments.picture else None
    if picture and picture.suffix not in (".svg", ".png"):
        raise UsageError(f"--picture {picture}: a name that ends with .svg or .png is needed")
    if picture and not picture.parent.is_dir():
        raise UsageError(f"--picture {picture}: there is no folder {picture.parent}")
    report = evaluate(
        EvaluateConfig(
            arguments.index,
            arguments.queries,
            modes=tuple(Mode) if arguments.mode == "all" else (Mode.parse(arguments.mode),),
            against=arguments.against,
            model=arguments.model,
            device=Device.parse(arguments.device),
            weights=Weights.parse(arguments.weights),
            baselines=not arguments.no_baselines,
            ablation=arguments.ablation,
            instruction=arguments.query_instruction,
        )
    )
    if picture:
        draw(report, picture)
    _print(report, arguments.json, out)
    return 0


def _benchmark(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.benchmark.run import SAMPLE, BenchmarkConfig, Part, benchmark

    if arguments.against not in ("flagembedding", "nothing"):
        raise UsageError(f"--against takes flagembedding or nothing, not {arguments.against!r}")
    report = benchmark(
        BenchmarkConfig(
            model=arguments.model,
            parts=tuple(Part.parse(word) for word in arguments.parts or ["encoder"]),
            inputs=tuple(arguments.input or [str(SAMPLE)]),
            rows=arguments.rows,
            repeats=arguments.repeats,
            device=Device.parse(arguments.device),
            precision=Precision.parse(arguments.precision),
            against=arguments.against == "flagembedding",
        )
    )
    if not arguments.json:
        print(report.to_text(), file=out)
    print(json.dumps(report.to_dict(), ensure_ascii=False), file=out)
    return 0


def _print(report: Any, as_json: bool, out: TextIO) -> None:
    print(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_text(), file=out)


def _print_dict(fields: dict[str, Any], text: str, arguments: argparse.Namespace, out: TextIO) -> None:
    print(json.dumps(fields, ensure_ascii=False) if arguments.json else text, file=out)
