"""An evaluation as a picture: Recall@10 and mAP@10 with their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from danbooru_index.evaluation.report import TITLES, EvaluationReport


def _plain_label(text: str) -> str:
    """A text that matplotlib shows as it is: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def draw(report: EvaluationReport, path: Path) -> None:
    """Recall@10 and mAP@10 of every system, over all queries and by kind, with their intervals (SVG or PNG by suffix)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts = {"all": sum(report.queries.values())} | report.queries
    kinds = list(counts)
    with rc_context({"svg.hashsalt": report.model_id, "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        for axes, measure in zip(figure.subplots(2, 1), ("R@10", "AP@10"), strict=True):
            width = 0.8 / len(report.systems)
            for place, system in enumerate(report.systems):
                values = np.array([(system.all if kind == "all" else system.kinds[kind])[measure] for kind in kinds])
                at = np.arange(len(kinds)) + (place - (len(report.systems) - 1) / 2) * width
                errors = np.abs(values[:, 1:].T - values[:, 0])
                axes.bar(at, values[:, 0], width, yerr=errors, capsize=2, label=_plain_label(system.name))
            axes.set_xticks(np.arange(len(kinds)), [_plain_label(f"{k} ({count:,})") for k, count in counts.items()])
            axes.set(ylabel=TITLES[measure], ylim=(0, 1))
            axes.grid(axis="y", alpha=0.3)
        figure.axes[0].legend(fontsize=8, ncols=3)
        title = f"{report.model} over {report.records:,} records; bars: mean, whiskers: 95% bootstrap interval"
        figure.suptitle(_plain_label(title))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    report.picture = str(path)
