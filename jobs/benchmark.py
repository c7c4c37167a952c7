"""Measure the job on a machine, or on the head node of a cluster:

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/benchmark.py encoder job --model BAAI/bge-m3 --input TAGS.jsonl

Takes the options of `danbooru-index benchmark`; the last line is one JSON document. See
BENCHMARKS.md.
"""

import sys

from danbooru_index.cli.entry import entry

if __name__ == "__main__":
    entry(["benchmark", *sys.argv[1:]])
