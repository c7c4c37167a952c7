"""Build an index on a Ray cluster:

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/build.py SHARDS --index INDEX --model BAAI/bge-m3

SHARDS, INDEX and a model folder are paths on storage that every node sees. Takes the options of
`danbooru-index build`.
"""

import sys

from danbooru_index.cli.entry import entry

if __name__ == "__main__":
    entry(["build", *sys.argv[1:]])
