"""Nightly rebuilds: readers meanwhile, and whatever befalls vectors that are used again.

The light encoder's vectors are a function of a text's tokens, to the bit: an index that used some
again must equal one that encoded all.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

from checkpoints import SAMPLE, make_checkpoint
from faults import (
    CHAOS,
    LIGHT_SHAPE,
    SUPPORT,
    Outcome,
    chance_of,
    compare,
    contents,
    finish,
    head_node,
    kill,
    said,
    start,
)

READERS = 4
GRACE_S = 4.0  # instead of 15 minutes: readers look once a second
EFFECT_S = 2.0  # in which a rollback is seen
NOTICED_S = 30.0
MODES = ("hybrid", "dense", "sparse", "colbert", "lexical")
ASKED = "twintails"  # a tag that every night keeps


def _records():
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def _night(records, number):
    """Another night's dump: some texts change, some records go, posts change, the order too."""
    changed = [dict(record) for record in records]
    for record in changed[number % 7 :: 40]:
        record["text"] += f" {number}"
    for record in changed:
        record["post_count"] = (record.get("post_count") or 0) + number
    gone = number % 11
    return changed[number % 50 :] + changed[gone : number % 50]


def readers(seed: int, count: int, folder: Path) -> Outcome:
    """`count` cycles of rebuild, publish, prune, rollback while four processes search: no query
    may fail, and a rollback is seen within two seconds.
    """
    from campaign_edits import one_ray
    from light import light_config, rebuilt

    from danbooru_index.index.catalog import IndexRoot
    from danbooru_index.index.publish import prune, rollback
    from danbooru_index.pipeline import rebuild

    rebuild.prune = partial(prune, grace_s=GRACE_S)
    outcome, records = Outcome(), _records()
    index, model = folder / "index", make_checkpoint(folder / "model", LIGHT_SHAPE)
    root, stop = IndexRoot(index), folder / "stop"
    late, slowest = 0, 0.0
    with one_ray():
        rebuilt(light_config(_write(folder / "d.jsonl", records), index, model))
        processes = [
            start([sys.executable, CHAOS / "campaign_nights.py", index, stop])
            for _ in range(READERS)
        ]
        _seen_by_all(outcome, processes, root.current_id())
        for number in range(1, count + 1):
            dump = _write(folder / "d.jsonl", _night(records, seed + number))
            report = rebuilt(light_config(dump, index, model))
            outcome.add("rebuilds")
            outcome.expect(report.reused > 0, "nothing was used again")
            _seen_by_all(outcome, processes, report.generation)
            if any(process.poll() is not None for process in processes):
                break
            with root.path.owned():
                back = rollback(root)
            seconds = _seen_by_all(outcome, processes, back.id)
            slowest, late = max(slowest, seconds), late + (seconds > EFFECT_S)
            outcome.add("rollbacks")
    stop.write_text("")
    for process in processes:
        code = finish(process, 60)
        outcome.expect(code == 0, f"a reader ended with {code}: {said(process)[-500:]}")
        last = (process.out.read_text().splitlines() or [""])[-1]
        outcome.add("answers", int(last.split()[1]) if last.startswith("answers ") else 0)
        kill(process.pid)
    outcome.add("rollbacks seen after more than 2 s", late)
    outcome.add("ms until the slowest rollback was seen by all", round(1000 * slowest))
    return outcome


def _seen_by_all(outcome, processes, generation) -> float:
    """Wait until every reader answers from a generation; in how many seconds."""
    began = time.monotonic()
    for process in processes:
        while process.out.read_text().split("\n")[-2:-1] != [f"from {generation}"]:
            if time.monotonic() > began + NOTICED_S or process.poll() is not None:
                outcome.problems.append(
                    f"a reader did not see {generation}: {said(process)[-300:]}"
                )
                return time.monotonic() - began
            time.sleep(0.02)
    return time.monotonic() - began


def read(index: Path, stop: Path) -> int:
    """One reader: asks in all modes until it is told to stop; the first query that fails ends it.
    Where names count, the tag of that name stands first.
    """
    from danbooru_index.search.tag_index import TagIndex

    answers, last = 0, ""
    with TagIndex.open(index) as tags:
        while not stop.exists():
            mode = MODES[answers % len(MODES)]
            hits = tags.search(ASKED, mode=mode, limit=5)
            answers += 1
            if not hits or (mode in ("hybrid", "lexical") and hits[0].tag != ASKED):
                print(f"{tags.generation.id} answered {mode} with {hits[:1]}", file=sys.stderr)
                return 1
            if tags.generation.id != last:
                last = tags.generation.id
                print(f"from {last}", flush=True)
            time.sleep(0.05)
    print(f"answers {answers}", flush=True)
    return 0


# ---- vectors that are used again ----


def reuse(seed: int, count: int, folder: Path) -> Outcome:
    """Each case a night that something befalls: its driver or an encoder is killed at a named
    point, a bit of the earlier generation rots, its files go meanwhile, it is of another
    fingerprint. The index must equal one that was made undisturbed.
    """
    outcome, records = Outcome(), _records()
    model = make_checkpoint(folder / "model", LIGHT_SHAPE)
    first = _write(folder / "first.jsonl", records)
    second = _write(folder / "second.jsonl", _night(records, 3))
    chance = chance_of(seed, "reuse")
    cases = [*POINTS, "rot", "rot", "gone", "other"]
    with head_node() as address:
        run = partial(_rebuild, model=model, address=address)
        base = folder / "base"
        outcome.expect(finish(run(first, base)) == 0, "the first night failed")
        expected = _undisturbed(outcome, run, base, second, folder / "expected")
        for number in range(count):
            case = cases[number % len(cases)]
            index = folder / f"i{number}"
            shutil.copytree(base, index)
            outcome.problems += [
                f"{case} ({number}): {problem}"
                for problem in _befallen(outcome, run, case, index, second, chance, expected)
            ]
            outcome.add(f"nights: {case}")
            shutil.rmtree(index)
    return outcome


POINTS = (
    "reuse.read",
    "encode.before_record",
    "build.before_commit",
    "build.sealed",
    "build.before_publish",
    "build.after_publish",
)


def _rebuild(dump, index, *options, model, address):
    command = [sys.executable, SUPPORT / "light.py", dump, index, model, "--rebuild"]
    return start([*command, "--address", address, *options])


def _undisturbed(outcome, run, base, dump, index):
    """The tables after a second night that used vectors again."""
    shutil.copytree(base, index)
    process = run(dump, index)
    outcome.expect(finish(process) == 0, f"the second night failed: {said(process)[-500:]}")
    report = json.loads(process.out.read_text().splitlines()[-1])
    outcome.expect(report["reused"] > 0, "the second night used nothing again")
    return contents(index)


def _befallen(outcome, run, case, index, dump, chance, expected):
    """One case; what is wrong afterwards."""
    options = ()
    generation = next((index / "generations").iterdir())
    if case == "rot":
        path = chance.choice(sorted(generation.glob("*.lance/data/*.lance")))
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif case == "gone":
        options = ("--failpoint", f"reuse.read:pause:{index / 'token'}:0")
    elif case == "other":
        manifest = generation / "manifest.json"
        _other_fingerprint(manifest)
    else:
        skip = chance.randrange(2) if case in POINTS[:2] else 0  # those of an encoder come often
        options = ("--failpoint", f"{case}:kill:{index / 'token'}:{skip}")
    process = run(dump, index, *options)
    if case == "gone":
        while not (index / "token").exists() and process.poll() is None:
            time.sleep(0.02)
        for path in generation.glob("*.lance/data/*.lance"):
            path.unlink()
    code = finish(process)
    outcome.expect(case not in POINTS or (index / "token").exists(), f"{case}: never reached")
    outcome.add("nights gone on with", code != 0)
    if code == -signal.SIGKILL or code == 1:
        process = run(dump, index)
        code = finish(process)
    if code != 0:
        return [f"ended with {code}: {said(process)[-500:]}"]
    return compare(index, expected)


def _other_fingerprint(path: Path) -> None:
    """As another precision's: its vectors must not be used."""
    from danbooru_index.storage.base import from_checked_json, to_checked_json

    fields = from_checked_json(path.read_bytes())
    fields["fingerprint_digest"] = "0" * 32
    path.write_bytes(to_checked_json(fields))


if __name__ == "__main__":
    sys.exit(read(Path(sys.argv[1]), Path(sys.argv[2])))
