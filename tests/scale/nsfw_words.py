"""How well words of a tag tell that it is not safe for work, against the marks of a rated dump.

python tests/scale/nsfw_words.py RATED             a dump with a column nsfw or rating
python tests/scale/nsfw_words.py ALL --safe SAFE   two dumps: counts of all posts, and of safe ones;
                                                   a tag is marked if fewer than 5% of its posts are

Only general tags of at least --posts posts count. Prints one JSON document.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from danbooru_index.ingest.nsfw import is_nsfw_by_words
from danbooru_index.ingest.sources import valid_records

SAFE_SHARE = 0.05


def marked(path, safe, posts):
    """(record, whether it is marked) of each general tag that is used often enough."""
    counts = (
        {record.tag: record.post_count or 0 for record in valid_records((safe,))} if safe else {}
    )
    for record in valid_records((path,)):
        if record.category == "general" and (record.post_count or 0) >= posts:
            share = counts.get(record.tag, 0) / max(1, record.post_count)
            yield record, share < SAFE_SHARE if safe else record.nsfw


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump")
    parser.add_argument("--safe")
    parser.add_argument("--posts", type=int, default=1000)
    arguments = parser.parse_args()
    hits = said = wanted = hit_posts = wanted_posts = tags = 0
    for record, mark in marked(arguments.dump, arguments.safe, arguments.posts):
        found, posts = is_nsfw_by_words(record.tag, record.category), record.post_count or 0
        tags += 1
        said += found
        wanted += mark
        hits += found and mark
        wanted_posts += posts * mark
        hit_posts += posts * (found and mark)
    figures = {
        "precision": hits / max(1, said),
        "recall": hits / max(1, wanted),
        "recall_by_posts": hit_posts / max(1, wanted_posts),
    }
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"tags": tags, "marked": wanted, **rounded}))


if __name__ == "__main__":
    main()
