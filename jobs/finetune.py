"""Fine-tune the model on tags on a Ray cluster, on every GPU that it has:

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/finetune.py PAIRS --index INDEX --out MODEL

PAIRS, INDEX and MODEL are paths on storage that every node sees. Takes the options of
`danbooru-index finetune`.
"""

import sys

from danbooru_index.cli.entry import entry

if __name__ == "__main__":
    entry(["finetune", *sys.argv[1:]])
