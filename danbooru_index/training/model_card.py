"""What a fine-tuning leaves beside its model: its curves as a picture, and the model card."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]


@dataclass(slots=True)
class Curves:
    """A training's log, (step, value) by quantity; a resumed one overwrites what it redoes."""

    steps: int = 0
    at: int = 0
    resumed_at: int = 0
    device: str = ""
    precision: str = ""
    workers: int = 1
    loss: Curve = field(default_factory=list)
    recall: Curve = field(default_factory=list)
    sparse: Curve = field(default_factory=list)
    learning_rate: Curve = field(default_factory=list)
    grad_norm: Curve = field(default_factory=list)


def read_curves(log: Path) -> Curves:
    """The curves of a log that may still be written; lines that are cut off are left out."""
    curves = Curves()
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return curves
    for line in lines:
        try:
            fields = json.loads(line)
            _add(curves, fields, int(fields["step"]))
        except (ValueError, KeyError, TypeError):
            continue
    return curves


def _add(curves: Curves, fields: dict[str, Any], step: int) -> None:
    curves.at = step
    if "steps" in fields:
        curves.steps, curves.resumed_at = fields["steps"], step
        curves.device, curves.precision, curves.workers = (
            fields["device"],
            fields["precision"],
            fields["workers"],
        )
    for name in ("loss", "recall", "sparse", "learning_rate", "grad_norm"):
        if name in fields:
            curve: Curve = getattr(curves, name)
            curve[:] = [point for point in curve if point[0] < step]
            curve.append((step, float(fields[name])))


def draw_curves(curves: Curves, path: Path) -> None:
    """Draw loss, found pairs, learning rate and gradient norm over the steps (.svg or .png)."""
    from matplotlib.figure import Figure

    shown = {
        "loss": "loss",
        "recall": "Recall@10, pairs set aside",
        "sparse": "texts with sparse weights",
    }
    shown |= {"learning_rate": "learning rate", "grad_norm": "gradient norm"}
    parts = [
        (title, getattr(curves, name)) for name, title in shown.items() if getattr(curves, name)
    ]
    figure = Figure(figsize=(9, 2.2 * max(1, len(parts))), layout="constrained")
    for axes, (title, curve) in zip(
        figure.subplots(max(1, len(parts)), 1, squeeze=False)[:, 0], parts, strict=False
    ):
        axes.plot(*zip(*curve, strict=True), marker="o" if len(curve) < 30 else None, markersize=3)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(alpha=0.3)
    figure.supxlabel("step", fontsize=9)
    figure.savefig(path)


def model_card(report: dict[str, Any]) -> str:
    """The `README.md` of a tuned model: base, data, settings, what was measured, its id."""
    found = ""
    if report["recall"]:
        before, after = report["recall"]
        found = f"| Recall@10, {report['aside']:,} pairs set aside | {before:.3f} | {after:.3f} |\n"
    if report["sparse"]:
        before, after = report["sparse"]
        found += f"| of their texts, have sparse weights | {before:.1%} | {after:.1%} |\n"
    settings = "\n".join(f"- `{name}`: {value}" for name, value in report["settings"].items())
    return f"""---
library_name: FlagEmbedding
base_model: {report["base"]}
tags: [bge-m3, danbooru]
---

# {Path(report["out"]).name}

{report["base"]} (id `{report["base_id"]}`), tuned on tags by `danbooru-index finetune`: dense,
sparse and ColBERT together.
Model id, over weights, heads, tokenizer and configuration: `{report["model_id"]}`.

    danbooru-index build SHARDS --index INDEX --model {report["out"]}

Also loads as `FlagEmbedding.BGEM3FlagModel({report["out"]!r})`.

## Data

{report["pairs"]:,} pairs of a query and a tag's text, {report["aside"]:,} set aside to measure
with. {report["held_out"]:,} held-out queries, in any spelling (NFKC, casefolded, without spaces and
underscores), are not among them; that was checked.

## Training

{report["steps"]:,} steps, {report["precision"]}, {report["workers"]} x {report["device"]},
{report["seconds"]:,.0f} s. Curves: `{report["picture"]}`.

| | before | after |
|---|---|---|
| loss (first and last logged) | {report["loss"][0]:.3f} | {report["loss"][1]:.3f} |
{found}
How well it finds tags: `danbooru-index evaluate INDEX QUERIES --against BASE_INDEX`.

{settings}
"""
