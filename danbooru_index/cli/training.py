"""The verb that makes a better model: finetune."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, TextIO

from danbooru_index.choices import Device, Precision
from danbooru_index.cli.options import print_report, verb
from danbooru_index.errors import UsageError
from danbooru_index.training.finetune_config import FinetuneConfig

NUMERIC_OPTIONS = {
    "lr": "learning rate",
    "batch_size": "queries a device and step",
    "group_size": "texts a query: its answer and negatives",
    "epochs": "times that every pair is seen",
    "temperature": "what scores are divided by",
    "query_length": "tokens a query",
    "passage_length": "tokens per text",
    "save_steps": "steps between checkpoints",
    "mined_share": "of the negatives; the others are drawn at random",
    "seed": "of order, negatives and dropout",
}


def add_finetune(verbs: Any) -> None:
    """The verb `finetune`."""
    parser = verb(
        verbs,
        "finetune",
        _finetune,
        "Tune the model on tags (FlagEmbedding's M3 training, on every GPU or the CPU); goes on"
        " after a kill.",
        "danbooru-index finetune tags.jsonl --index my-index --held-out queries.jsonl --out"
        " tuned-model",
    )
    parser.add_argument(
        "pairs",
        metavar="PAIRS",
        help=(
            '{"query": "...", "pos": [...], "neg": [...]} a line; or a tag dump, to make them from'
        ),
    )
    parser.add_argument("--index", help="where hard negatives are mined")
    parser.add_argument(
        "--out", required=True, metavar="MODEL", help="a new folder, in BGE-M3's format"
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        help="what to tune (default: the model that built the index)",
    )
    parser.add_argument(
        "--names",
        action="append",
        default=[],
        metavar="FILE",
        help='more names: {"tag": "...", "ja": "..."} a line',
    )
    parser.add_argument(
        "--held-out",
        action="append",
        default=[],
        metavar="QUERIES",
        help="queries that are never trained on",
    )
    _add_numbers(parser)
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="use at most N GPUs (default all)"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument(
        "--precision", default="auto", metavar="auto|fp32|bf16|fp16", help="mixed precision"
    )
    parser.add_argument(
        "--address", metavar="RAY", help="a running Ray cluster, such as auto (default: start one)"
    )


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    """The options that are a number of `FinetuneConfig`, each with its default there."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(FinetuneConfig)}
    for name, what in NUMERIC_OPTIONS.items():
        default = defaults[name]
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option,
            type=type(default),
            default=default,
            metavar="N",
            help=f"{what} (default %(default)s)",
        )
    parser.add_argument(
        "--ranks",
        default="{}-{}".format(*defaults["ranks"]),
        metavar="A-B",
        help="of mined negatives (default %(default)s)",
    )


def _finetune(arguments: argparse.Namespace, out: TextIO) -> int:
    from danbooru_index.training.finetune import finetune

    given = vars(arguments)
    plain = ("pairs", "out", "index", "model", "num_gpus", "address", *NUMERIC_OPTIONS)
    config = FinetuneConfig(
        **{name: given[name] for name in plain},
        names=tuple(arguments.names),
        held_out=tuple(arguments.held_out),
        ranks=_ranks(arguments.ranks),
        device=Device.parse(arguments.device),
        precision=Precision.parse(arguments.precision),
    )
    print_report(finetune(config), arguments.json, out)
    return 0


def _ranks(word: str) -> tuple[int, int]:
    first, _, last = word.partition("-")
    try:
        return int(first), int(last)
    except ValueError:
        raise UsageError(f"--ranks takes two ranks, such as 2-20, not {word!r}") from None
