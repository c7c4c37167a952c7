"""Several processes at once: for one index, for one commit, and readers under a stream of
publishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import lance
import vault
from checkpoints import make_checkpoint
from faults import (
    CHAOS,
    LIGHT_SHAPE,
    SUPPORT,
    Outcome,
    chance_of,
    compare,
    contents,
    finish,
    kill,
    said,
    start,
)

from danbooru_index.choices import Mode
from danbooru_index.config import Weights
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.failpoints import Failpoint
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.checks import verify_table
from danbooru_index.index.commit import commit
from danbooru_index.index.completion import complete, read_record, read_records, record_path
from danbooru_index.search.query_encoder import QueryEncoder
from danbooru_index.search.tag_index import TagIndex

SHARDS = 3
PROCESSES = 4


def owners(seed: int, count: int, folder: Path) -> Outcome:
    """Four processes for one index; in every fourth race the owner is killed, and the next must own
    it at once.
    """
    outcome = Outcome()
    names = vault.shard_names(SHARDS)
    vault.build(folder / "base", names, model="a")
    vault.build(folder / "b", names, model="b")
    expected = contents(folder / "b")
    for number in range(count):
        index = Path(shutil.copytree(folder / "base", folder / f"race{number}"))
        killed = chance_of(seed, "owners", number).random() < 0.25
        _race(outcome, index, number, "kill" if killed else "pause")
        if killed:
            began = time.monotonic()
            following = start(_command(index))
            outcome.expect(
                finish(following) == 0,
                f"race {number}: no owner after a kill: {said(following)[-300:]}",
            )
            outcome.counts["slowest replacement (ms)"] = max(
                outcome.counts.get("slowest replacement (ms)", 0),
                round(1000 * (time.monotonic() - began)),
            )
        outcome.problems += [f"race {number}: {problem}" for problem in compare(index, expected)]
        outcome.expect(
            len(IndexRoot(index).generations()) == 2, f"race {number}: more than one new generation"
        )
        shutil.rmtree(index)
    return outcome


def _command(index, *options):
    return [
        sys.executable,
        SUPPORT / "vault.py",
        index,
        "--shards",
        SHARDS,
        "--model",
        "b",
        *options,
    ]


def _race(outcome, index, number, action):
    gates = [index.with_name(f"{index.name}.gate{n}") for n in range(PROCESSES)]
    point = f"generation.started:{action}:{index}.token:0"
    processes = [start(_command(index, "--wait", gate, "--failpoint", point)) for gate in gates]
    while not all(gate.exists() for gate in gates):
        time.sleep(0.005)
    for gate in gates:
        gate.unlink()
    codes = [finish(process) for process in processes]
    outcome.add("races")
    if action == "kill":
        outcome.add("owners killed", codes.count(-9))
        outcome.expect(codes.count(-9) == 1, f"race {number}: {codes}")
        losers = [p for p, code in zip(processes, codes, strict=True) if code not in (-9, 0)]
    else:
        outcome.expect(sorted(codes) == [0, 1, 1, 1], f"race {number}: {codes}")
        losers = [p for p, code in zip(processes, codes, strict=True) if code != 0]
    for loser in losers:
        words = said(loser)
        clear = words.count("\n") == 0 and "is at work on this index" in words
        outcome.expect(clear, f"race {number}: {words[-300:]}")
        outcome.add("left with a clear line", clear)


def attempts(seed: int, count: int, folder: Path) -> Outcome:
    """Several attempts at one shard at once, as a late writer beside its successor: one wins, and
    keeps its files.
    """
    outcome = Outcome()
    root = IndexRoot(folder / "index")
    root.create()
    names = vault.shard_names(count)
    generation = root.start(vault.manifest(names))
    for name in names:
        _attempt_together(outcome, generation, name, chance_of(seed, "attempts", name))
    records = read_records(generation.path, names, generation.manifest.fingerprint_digest)
    outcome.expect(
        len(records) == count, f"{count - len(records)} shards have no record that can be believed"
    )
    ordered = [records[name] for name in names if name in records]
    versions = commit(generation.path, generation.manifest.specs, ordered)
    for spec in generation.manifest.specs:
        outcome.problems += verify_table(generation.path, spec, versions[spec.name], ordered)
        named = {file for record in ordered for file in record.tables[spec.name].checksums}
        there = {path.name for path in (generation.path / f"{spec.name}.lance" / "data").entries()}
        outcome.expect(
            there == named,
            f"{spec.name}: {len(there - named)} files of losers, {len(named - there)} missing",
        )
    return outcome


def _attempt_together(outcome, generation, name, chance):
    won, lock = [], threading.Lock()
    rows = [chance.randint(5, 25) for _ in range(chance.randint(2, 5))]
    gate = threading.Barrier(len(rows))

    def one(count, seed):
        writer, record, _ = vault.write_shard(generation, name, count, seed, finish=False)
        gate.wait()
        try:
            first = complete(generation.path, record)
        except DanbooruIndexError as error:
            outcome.problems.append(f"{name}: {error}")
            return
        if first:
            with lock:
                won.append(seed)
        else:
            writer.discard()

    threads = [threading.Thread(target=one, args=(count, seed)) for seed, count in enumerate(rows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.add("shards")
    outcome.add("attempts", len(rows))
    outcome.expect(len(won) == 1, f"{name}: {len(won)} of {len(rows)} attempts won")


UNSOUND = (
    "fragments of another shard",
    "a row too many",
    "a table without a fragment",
    "another order",
    "a file gone",
    "a file cut",
)


def unsound(seed: int, count: int, folder: Path) -> Outcome:
    """Completion records that are wrong though their checksum is right, and files that went: never
    published as they are.
    """
    outcome = Outcome()
    names = vault.shard_names(4)
    vault.build(folder / "whole", names)
    expected = contents(folder / "whole")
    for number in range(count):
        way = UNSOUND[number % len(UNSOUND)]
        index = folder / f"index{number}"
        with contextlib.suppress(DanbooruIndexError):
            vault.build(index, names, failpoints=[Failpoint("build.before_commit", action="error")])
        _spoil(index, names, way, chance_of(seed, "unsound", number))
        outcome.add("cases")
        try:
            vault.build(index, names)
            outcome.add("done again")
            outcome.problems += [
                f"{way}: published, but {problem}" for problem in compare(index, expected)
            ]
        except DanbooruIndexError as error:
            outcome.add("refused")
            outcome.expect(not way.startswith("a file"), f"{way}: not done again: {error}")
            outcome.expect("nothing was published" in str(error), f"{way}: {error}")
            outcome.expect(IndexRoot(index).current_id() is None, f"{way}: refused and published")
    return outcome


def _spoil(index, names, way, chance):
    generation = IndexRoot(index).generations()[-1]
    records = {name: read_record(generation.path, name)[0] for name in names}
    one, other = chance.sample(names, 2)
    record, table = records[one], chance.choice(["dense", "sparse", "colbert"])
    part = record.tables[table]
    if way.startswith("a file"):
        path = Path(generation.path / f"{table}.lance" / "data" / next(iter(part.checksums)))
        (
            path.unlink()
            if way == "a file gone"
            else os.truncate(path, path.stat().st_size - chance.randint(1, 200))
        )
        return
    if way == "fragments of another shard":
        record.tables = records[other].tables
    elif way == "a row too many":
        record.rows, record.read = record.rows + 1, record.read + 1
    elif way == "a table without a fragment":
        part.fragments = part.fragments[:-1]
    else:
        record.tables[table], records[other].tables[table] = records[other].tables[table], part
        record_path(generation.path, other).local_path().write_bytes(records[other].to_bytes())
    record_path(generation.path, one).local_path().write_bytes(record.to_bytes())


def commits(seed: int, count: int, folder: Path) -> Outcome:
    """One commit again and again: alone, its reply lost, or by four at once. The tables stay
    exactly the records.
    """
    outcome = Outcome()
    index = folder / "index"
    vault.build(index, vault.shard_names(SHARDS), model="a")
    expected = contents(index)
    generation = IndexRoot(index).current()
    manifest = generation.manifest
    records = list(
        read_records(generation.path, manifest.shards, manifest.fingerprint_digest).values()
    )
    plain = lance.LanceDataset.commit
    for number in range(count):
        chance = chance_of(seed, "commits", number)
        way = ("once more", "reply lost", "four at once")[number % 3]
        if way == "reply lost":
            lance.LanceDataset.commit = staticmethod(_lossy(plain, chance.randint(1, 3)))
        try:
            if way == "four at once":
                versions = _together(outcome, generation, manifest, records)
            else:
                versions = commit(generation.path, manifest.specs, records)
        finally:
            lance.LanceDataset.commit = plain
        outcome.add("replays")
        outcome.add(way)
        for spec in manifest.specs:
            rows = lance.dataset(
                str(generation.path / f"{spec.name}.lance"), version=versions[spec.name]
            ).to_table()
            outcome.expect(
                rows.to_pylist() == expected[spec.name],
                f"replay {number} ({way}): other rows in {spec.name}",
            )
            outcome.problems += verify_table(generation.path, spec, versions[spec.name], records)
    return outcome


def _lossy(plain, losses):
    """Lance's commit, whose first replies get lost: it is done, and its caller is told that it
    failed.
    """
    left = [losses]

    def commit_and_lose(*arguments, **options):
        done = plain(*arguments, **options)
        if left[0]:
            left[0] -= 1
            raise OSError("the reply was lost")
        return done

    return commit_and_lose


def _together(outcome, generation, manifest, records):
    found, lock = [], threading.Lock()

    def one():
        try:
            versions = commit(generation.path, manifest.specs, records)
        except Exception as error:
            outcome.problems.append(f"one of four: {type(error).__name__}: {error}")
            return
        with lock:
            found.append(versions)

    threads = [threading.Thread(target=one) for _ in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(found, key=lambda versions: versions["colbert"])


# ---- publishes under readers ----

GRACE_S = 3.0
NOTICED_S = 20.0
QUERIES = ("1girl", "女の子", "two boys")  # a tag, an alias and nearly one of the records


def publishes(seed: int, count: int, folder: Path) -> Outcome:
    """`count` generations published and pruned while four processes search; each answer must be of
    one generation.
    """
    outcome = Outcome()
    index, model = folder / "index", str(make_checkpoint(folder / "model", LIGHT_SHAPE))
    vault.GRACE_S = GRACE_S
    names = vault.shard_names(2)
    vault.build(index, names, 10, path=model, seed=1)
    stop = folder / "stop"
    readers = [
        start([sys.executable, CHAOS / "campaign_races.py", index, stop, n])
        for n in range(PROCESSES)
    ]
    while not all("ready" in reader.out.read_text() for reader in readers):
        time.sleep(0.1)
        if any(reader.poll() is not None for reader in readers):
            raise RuntimeError("".join(said(reader)[-500:] for reader in readers))
    for number in range(2, count + 2):
        vault.build(index, names, 10, path=model, seed=number, keep=2)
        outcome.add("publishes")
        if number in (count // 2 + 1, count + 1):
            # half way and at the end: however fast this machine publishes
            _caught_up(outcome, readers, str(number))
    stop.write_text("")
    for reader in readers:
        outcome.expect(
            finish(reader, 60) == 0,
            f"a reader ended with {reader.returncode}: {said(reader)[-500:]}",
        )
        answer = json.loads(reader.out.read_text().splitlines()[-1])
        outcome.problems += answer["problems"][:5]
        outcome.add("answers", answer["answers"])
        outcome.add("changes of generation noticed", answer["changes"])
        outcome.expect(answer["changes"] > 1, "a reader did not notice new generations")
    left = len(list((index / "generations").iterdir()))
    outcome.add("generations left", left)
    outcome.expect(left < count or count < 200, "nothing was pruned")
    for reader in readers:
        kill(reader.pid)
    return outcome


def _caught_up(outcome, readers, generation):
    """Wait until every reader answers from that generation: they look once a second."""
    deadline = time.monotonic() + NOTICED_S
    while late := [
        r for r in readers if r.out.read_text().split("answers from ")[-1].strip() != generation
    ]:
        if time.monotonic() > deadline or any(reader.poll() is not None for reader in late):
            outcome.problems.append(
                f"{len(late)} readers did not notice generation {generation} in {NOTICED_S:.0f} s"
            )
            return
        time.sleep(0.1)


def read(index: Path, stop: Path, number: int) -> None:
    """One reader: searches in all modes until told to stop; checks every score against the
    generation of its hit.
    """
    problems, answers, changes, last = [], 0, 0, ""
    encode, found = None, {}
    with TagIndex.open(index) as tags:
        modes = list(Mode)
        while not stop.exists():
            mode, query = modes[answers % len(modes)], QUERIES[answers % len(QUERIES)]
            try:
                hits = tags.search(query, mode=mode, limit=5, weights=Weights())
            except DanbooruIndexError as error:
                problems.append(f"reader {number}: {mode.value}: {error}")
                continue
            encode = encode or QueryEncoder(tags.generation)
            if not answers:
                print("ready", flush=True)
            answers += 1
            sources = {hit.source for hit in hits}
            if len(sources) > 1:
                problems.append(f"one answer from generations {sources}")
            if hits and hits[0].source != last:
                changes += last != ""
                last = hits[0].source
                print(f"answers from {last}", flush=True)
            if hits:
                found[mode] = found.get(mode, 0) + len(hits)
            problems += _strange_scores(hits, encode([query])[0])
            time.sleep(0.02)
    problems += [
        f"reader {number}: no hit ever by {mode.value}" for mode in modes if not found.get(mode)
    ]
    print(json.dumps({"problems": problems, "answers": answers, "changes": changes}))


def _strange_scores(hits, query):
    """Scores that are not those of the hit's own generation: its vectors are known from its
    number.
    """
    for hit in hits:
        if hit.dense is None:
            continue  # found by its name: no vector was read
        shard, _, row = hit.id.rpartition("-")
        encoding = vault.make_encoding(10, int(shard[-3:]) + 1000 * int(hit.source))
        row = int(row)
        dense = float(encoding.dense[row].astype(float) @ query.dense.astype(float))
        sparse = sum(
            query.sparse.get(token, 0.0) * weight
            for token, weight in encoding.sparse_row(row).items()
        )
        matrix = encoding.colbert_row(row).astype(float)
        colbert = float((matrix @ query.colbert.astype(float).T).max(0).mean())
        ours, theirs = (hit.dense, hit.sparse, hit.colbert), (dense, sparse, colbert)
        if any(abs(a - b) > 5e-3 for a, b in zip(ours, theirs, strict=True)):
            return [
                f"hit {hit.id} of generation {hit.source} has scores {ours}, its generation gives"
                f" {theirs}"
            ]
    return []


if __name__ == "__main__":
    read(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
