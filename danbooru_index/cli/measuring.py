"""Verbs that measure: evaluate, benchmark, doctor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, TextIO

from danbooru_index.choices import Device, Mode, Precision
from danbooru_index.cli.options import add_query_options, asked_fusion, print_report, verb
from danbooru_index.config import BASELINE_RECORDS, Weights
from danbooru_index.errors import UsageError


def add_evaluate(verbs: Any) -> None:
    """The verb `evaluate`."""
    parser = verb(
        verbs,
        "evaluate",
        _evaluate,
        "Recall, nDCG, mAP and MRR of an index over a queries file, by mode and by kind, beside"
        " BM25 and TF-IDF.",
        "danbooru-index evaluate my-index queries.jsonl --against another-index --picture"
        " quality.svg",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "queries",
        metavar="QUERIES",
        help='{"query": "...", "relevant": ["tag"], "kind": "zh"} a line',
    )
    parser.add_argument("--mode", default="all", metavar="all|hybrid|lexical|dense|sparse|colbert")
    add_query_options(parser)
    parser.add_argument(
        "--against", metavar="INDEX2", help="another index, to compare with: base against tuned"
    )
    parser.add_argument(
        "--query-instruction",
        metavar="TEXT",
        help="put before every query of INDEX (default: its own)",
    )
    parser.add_argument(
        "--no-baselines", action="store_true", help="without BM25 and character TF-IDF"
    )
    parser.add_argument(
        "--ablation", action="store_true", help="also hybrid without each of its parts"
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw Recall@10 and mAP@10 (.svg or .png)"
    )


def _evaluate(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.evaluation.evaluate import EvaluateConfig, evaluate
    from danbooru_index.evaluation.report import draw_evaluation

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
            fusion=asked_fusion(arguments),
            baselines=not arguments.no_baselines,
            ablation=arguments.ablation,
            instruction=arguments.query_instruction,
        )
    )
    if picture:
        draw_evaluation(report, picture)
    print_report(report, arguments.json, out)
    return 0


def add_benchmark(verbs: Any) -> None:
    """The verb `benchmark`."""
    parser = verb(
        verbs,
        "benchmark",
        _benchmark,
        "Measure this job against what you would use instead, here, as ratios; the last line is one"
        " JSON document.",
        "danbooru-index benchmark encoder job --model BAAI/bge-m3 --input tags.jsonl --rows 4096",
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=(
            "encoder (default), packing, colbert, job, overhead; with a simulated forward: device,"
            " overlap, scaling, shards"
        ),
    )
    parser.add_argument(
        "--against",
        default="flagembedding",
        metavar="flagembedding|nothing",
        help="(default %(default)s)",
    )
    parser.add_argument("--model", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument(
        "--precision",
        default="auto",
        metavar="auto|fp32|bf16|fp16",
        help=(
            "auto: encoder measures all that this device has, the other parts the one that build"
            " takes"
        ),
    )
    parser.add_argument(
        "--input",
        action="append",
        metavar="INPUT",
        help="a tag dump (default: the sample of 468 tags)",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="records of it (default 2048, on a GPU 65536)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="rounds of each contestant (default %(default)s)",
    )


def _benchmark(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.benchmark.run import BenchmarkConfig, Part, benchmark
    from danbooru_index.config import SAMPLE_TAGS

    if arguments.against not in ("flagembedding", "nothing"):
        raise UsageError(f"--against takes flagembedding or nothing, not {arguments.against!r}")
    report = benchmark(
        BenchmarkConfig(
            model=arguments.model,
            parts=tuple(Part.parse(word) for word in arguments.parts or ["encoder"]),
            inputs=tuple(arguments.input or [str(SAMPLE_TAGS)]),
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


def add_doctor(verbs: Any) -> None:
    """The verb `doctor`."""
    parser = verb(
        verbs,
        "doctor",
        _doctor,
        "Check this installation: versions, device, model, a real encode, Ray, disk space; exit 1"
        " where one is not right.",
        "danbooru-index doctor --model BAAI/bge-m3 --records 1386373 --path /data",
    )
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="(default: what build would take here)"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--precision", default="auto", metavar="auto|fp32|bf16|fp16")
    parser.add_argument(
        "--records", type=int, default=BASELINE_RECORDS, metavar="N", help="(default %(default)s)"
    )
    parser.add_argument(
        "--path", default=".", metavar="DIR", help="where the index will be (default: here)"
    )
    parser.add_argument(
        "--address", metavar="RAY", help="a running Ray cluster, such as auto (default: start one)"
    )


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
    print_report(report, arguments.json, out)
    return 0 if report.healthy else 1
