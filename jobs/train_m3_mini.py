"""Make m3-mini, the embedded model, from tag dumps: the recipe with its seed.

    python jobs/train_m3_mini.py danbooru_tags.jsonl.gz --names names_ja.jsonl.gz \\
        --held-out queries_dev.jsonl --out m3-mini

Ten minutes on two CPU cores with AMX (2026-11-21, 137,317 tags). Started again after a kill, it
goes on where it was; the same inputs and seed give the same recipe, and weights that differ by
rounding.
"""

import argparse
import sys
from pathlib import Path

from danbooru_index.cli.entry import guarded
from danbooru_index.log_lines import log_to_stderr
from danbooru_index.training.m3_mini import make_mini
from danbooru_index.training.mini_vectors import MiniRecipe


def main() -> int:
    """Make the model; print what was trained."""
    parser = argparse.ArgumentParser(description="Make m3-mini from tag dumps.")
    parser.add_argument("records", nargs="+", metavar="INPUT")
    parser.add_argument("--names", action="append", default=[], metavar="FILE")
    parser.add_argument("--held-out", action="append", default=[], metavar="QUERIES")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    log_to_stderr()
    print(
        make_mini(
            arguments.records, arguments.names, arguments.held_out, arguments.out, MiniRecipe()
        ).to_text()
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
