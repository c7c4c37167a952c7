"""A scheduled full rebuild on a Ray cluster:

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/rebuild.py DUMP --index INDEX --model BAAI/bge-m3 --keep 3

Takes the options of `danbooru-index rebuild`. What is published changes only when every check of
the new build passes.
"""

import sys

from danbooru_index.cli.entry import entry

if __name__ == "__main__":
    entry(["rebuild", *sys.argv[1:]])
