"""`diff`: what changed between two generations, against an oracle of plain dicts."""

import json
import random
from dataclasses import replace

import pytest
import vault
from processes import one_line, run_cli

from danbooru_index.cli.entry import main
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.completion import complete, read_records
from danbooru_index.index.difference import diff
from danbooru_index.index.fragments import ShardWriter
from danbooru_index.index.lifecycle import open_generation, seal_and_publish
from danbooru_index.ingest.shards import to_table
from danbooru_index.pipeline.self_check import check_tables
from danbooru_index.records import Record


def publish(index, records, name):
    """A generation of these records, in this order."""
    root = IndexRoot(index)
    root.create()
    with root.path.owned():
        generation = open_generation(root, vault.manifest([name], input_digest=name)).generation
        writer = ShardWriter(generation.path, name, vault.SPECS)
        writer.write(to_table(records), vault.make_encoding(len(records)))
        record = vault.CompletionRecord(
            name,
            generation.manifest.fingerprint_digest,
            writer.attempt,
            len(records),
            len(records),
            writer.finish(),
        )
        assert complete(generation.path, record)
        done = read_records(generation.path, [name], generation.manifest.fingerprint_digest)
        seal_and_publish(root, generation, [done[name]], [], check_tables)
        return generation.id


def record(number, chance, tag=None):
    tag = f"tag_{number}" if tag is None else tag
    category = chance.choice(["general", "character", ""])
    posts = chance.choice([None, 0, chance.randrange(1_000_000)])
    return Record(
        str(number), f"{tag} text", tag, category, "", "danbooru", posts, (), False, False
    )


def changed(records, chance):
    """A night later: some gone, some new, some changed, ids renumbered, the order another."""
    kept = [one for one in records if chance.random() > 0.15]
    later = []
    for one in kept:
        change = {}
        if chance.random() < 0.2:
            change["text"] = one.text + " 猫耳"
        if chance.random() < 0.2:
            change["category"] = "copyright"
        if chance.random() < 0.5:
            change["post_count"] = chance.choice([None, 5, chance.randrange(1_000_000)])
        later.append(replace(one, **change))
    later += [record(1000 + n, chance) for n in range(chance.randrange(10))]
    chance.shuffle(later)
    return [replace(one, id=f"n{place}" if one.tag else one.id) for place, one in enumerate(later)]


def oracle(old, new):
    """The same, by dicts."""
    before, after = ({one.tag or one.id: one for one in some} for some in (old, new))
    both = before.keys() & after.keys()

    def differ(field):
        return {
            key: (getattr(before[key], field), getattr(after[key], field))
            for key in both
            if getattr(before[key], field) != getattr(after[key], field)
        }

    posts = {key: pair for key, pair in differ("post_count").items() if None not in pair}
    return after.keys() - both, before.keys() - both, differ("text"), differ("category"), posts


@pytest.mark.parametrize("seed", range(4))
def test_every_change_is_found_and_nothing_else(tmp_path, seed):
    chance = random.Random(seed)
    old = [record(n, chance, "" if n % 9 == 0 else None) for n in range(60)]
    new = changed(old, chance)
    ids = [publish(tmp_path / "i", old, "a"), publish(tmp_path / "i", new, "b")]
    found = diff(str(tmp_path / "i"))
    assert [found.old.id, found.new.id] == ids
    added, removed, texts, categories, posts = oracle(old, new)

    def pairs(entries):
        return {one["tag"] or one["id"]: (one["old"], one["new"]) for one in entries}

    assert {one["tag"] or one["id"] for one in found.added} == added
    assert {one["tag"] or one["id"] for one in found.removed} == removed
    assert pairs(found.texts) == texts
    assert pairs(found.categories) == categories
    assert pairs(found.moved) == posts
    moves = [abs(one["new"] - one["old"]) for one in found.moved]
    assert moves == sorted(moves, reverse=True)
    counts = [one["post_count"] for one in found.added if one["post_count"] is not None]
    assert counts == sorted(counts, reverse=True)
    back = diff(str(tmp_path / "i"), ids[1], ids[0])
    assert (back.added, back.removed) == (found.removed, found.added)
    again = diff(str(tmp_path / "i"), ids[1], ids[1])
    assert not any((again.added, again.removed, again.texts, again.categories, again.moved))


def test_tags_that_occur_twice_are_compared_one_by_one(tmp_path):
    chance = random.Random(0)
    twice = [replace(record(n, chance, "same"), text=f"text {n}") for n in range(3)]
    publish(tmp_path / "i", twice, "a")
    publish(tmp_path / "i", twice[:2], "b")
    found = diff(str(tmp_path / "i"))
    assert [one["id"] for one in found.removed] == ["2"]
    assert not found.added
    assert not found.texts


def test_the_verb_and_what_it_refuses(tmp_path, capfd):
    index = str(tmp_path / "i")
    chance = random.Random(1)
    one = Record("1", "a", "1girl", "general", "", "d", 1000, (), False, False)
    first = publish(index, [one, record(2, chance)], "a")
    assert main(["diff", index]) == 1
    assert f"no generation before {first} to compare with" in capfd.readouterr().err
    more = replace(one, post_count=13_345, text="b", category="meta")
    second = publish(index, [more, record(3, chance, "new_tag")], "b")
    assert main(["diff", index]) == 0
    out = capfd.readouterr().out
    assert f"{first} (" in out
    assert "added: 1\n  new_tag (" in out
    assert "removed: 1\n  tag_2 (" in out
    assert "1girl: a -> b" in out
    assert "1girl: general -> meta" in out
    assert "1girl: +12,345 (1,000 -> 13,345)" in out
    assert main(["diff", index, first, second, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["post_count"] == [{"id": "1", "tag": "1girl", "old": 1000, "new": 13_345}]
    assert document["old"]["generation"] == first
    assert main(["diff", index, "--limit", "0"]) == 0
    assert "  ... and 1 more (--limit N)" in capfd.readouterr().out
    assert main(["diff", index, "g9"]) == 2
    assert f"no finished generation g9; there are {first}, {second}" in capfd.readouterr().err
    assert main(["diff", index, "--limit", "-1"]) == 2


@pytest.mark.slow
def test_an_index_that_is_not_there(tmp_path):
    assert "no index here" in one_line(run_cli("diff", tmp_path / "none"), 1)
