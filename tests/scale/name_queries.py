"""Queries as they are typed from memory: tags' own words with a letter left out (`misspelled`), or
without the first (`part`).

    python tests/scale/name_queries.py danbooru_tags.jsonl.gz > names.jsonl

1,500 tags by chance, the same at every run; for `danbooru-index evaluate`.
"""

import gzip
import json
import sys

import numpy as np

COUNT = 1500


def main():
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as lines:
        tags = [json.loads(line)["tag"] for line in lines]
    chance = np.random.default_rng(7)
    for row in chance.choice(len(tags), COUNT, replace=False).tolist():
        words = tags[row].replace("_", " ")
        if len(words) > 5:
            left_out = int(chance.integers(1, len(words) - 1))
            say(words[:left_out] + words[left_out + 1 :], tags[row], "misspelled")
        first, _, rest = words.partition(" ")
        if len(first) > 1 and len(rest) > 1:
            say(rest, tags[row], "part")


def say(query, tag, kind):
    print(json.dumps({"query": query, "relevant": [tag], "kind": kind}, ensure_ascii=False))


if __name__ == "__main__":
    main()
