"""The names of the files in which a training keeps where it is."""

from __future__ import annotations

PAIRS, ASIDE, LOG, FAILURE, FINAL = "pairs.jsonl", "aside.jsonl", "log.jsonl", "failure.json", "final"  # of a training
