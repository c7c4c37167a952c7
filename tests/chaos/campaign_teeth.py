"""Do the campaigns bite? Bugs planted in a copy of the package, one at a time: each must be caught
by the campaign named.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from faults import ROOT, Outcome


@dataclass(frozen=True)
class Bug:
    """What is planted: in `module`, `old` becomes `new`; the campaign, its size, and what it is
    limited to.
    """

    module: str
    old: str
    new: str
    campaign: str
    count: int
    names: str = ""


BUGS = {
    "a non-exclusive create": Bug("storage/local", "os.link(temporary, self.path)", "os.replace(temporary, self.path); temporary.touch()", "attempts", 12),
    "a loser that deletes the winner's files": Bug("index/fragments", "path.delete()\n\n    def _flush", "[p.delete() for p in path.parent.entries()]\n\n    def _flush", "attempts", 12),
    "append instead of overwrite": Bug("index/commit", "lance.LanceOperation.Overwrite(spec.schema, fragments)", "(lance.LanceOperation.Append(fragments) if _latest_version(folder, spec) else lance.LanceOperation.Overwrite(spec.schema, fragments))", "commits", 6),
    "publish without the checks": Bug("index/lifecycle", "checks = check(generation, versions, records)", "checks = Checks()", "unsound", 6),
    "records believed without their files": Bug("index/completion", "return all(part.sizes", "return True or all(part.sizes", "unsound", 12),
    "no owner": Bug("storage/local", "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "owners", 3),
    "a checksum that is not compared": Bug("storage/base", "if to_checked_json(fields) != content:", "if False:", "rot", 600),
    "Lance's manifests not in the seal": Bug("index/lifecycle", "files=metadata_checksums(generation.path, specs)", "files={}", "rot", 40),
    "extension types let through": Bug("ingest/parquet", "if _declares_extension_types(footer):", "if False:", "hostile", 39),
    "the fsync of data skipped": Bug("index/fragments", "    for path in fragment_files(folder, part.fragments):\n        path.sync()\n", "    for path in fragment_files(folder, part.fragments):\n", "power-loss", 80),
    "the fsync of folders skipped": Bug("index/fragments", '        for inner in (folder / "data", folder, folder.parent):\n            inner.sync()\n', "        pass\n", "power-loss", 80),
    "the fsync of documents skipped": Bug("storage/local", "            file.flush()\n            os.fsync(file.fileno())\n", "            file.flush()\n", "power-loss", 80),
    "documents written in place": Bug("storage/local", "        os.replace(temporary, self.path)\n", "        self.path.write_bytes(temporary.read_bytes()); temporary.unlink()\n", "power-loss", 120),
    "Lance's manifests not synced": Bug("index/commit", "        sync_manifests(folder)\n", "", "power-loss", 80),
    "a compaction that is not synced": Bug("index/compaction", "    sync_manifests(folder)\n", "", "power-loss", 120),
    "the record before the fragments": Bug("pipeline/encode_stage", "                parts = work.writer.finish()\n", "                parts = work.writer.parts\n                complete(self._settings.generation, CompletionRecord(shard.id, self._settings.fingerprint, work.writer.attempt, work.kept, shard.rows, parts, work.rejects))\n                parts = work.writer.finish()\n", "failpoints", 1, "shard.flushed"),
    "the fingerprint dropped": Bug("index/lifecycle", "old.fingerprint_digest == wanted.fingerprint_digest", "True", "never-mixed", 1, "max length"),
    "a lost reply taken for a loss": Bug("index/completion", "return found.attempt == record.attempt", "return False", "s3", 8, "lost"),
    "a lease that holds nobody off": Bug("storage/lease", "elif time.time() < note[\"until\"] or not self._take(version):", "elif not self._take(version):", "s3", 2),
}  # fmt: skip


def planted_bugs(seed: int, count: int, folder: Path) -> Outcome:
    """Plant each of the first `count` bugs in a copy, run its campaign there, and see that it
    breaks.
    """
    outcome = Outcome()
    for number, (name, bug) in enumerate(list(BUGS.items())[:count]):
        tree = folder / f"tree{number}"
        for part in ("danbooru_index", "tests"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        module = tree / "danbooru_index" / f"{bug.module}.py"
        source = module.read_text(encoding="utf-8")
        if source.count(bug.old) != 1:
            outcome.problems.append(f"{name}: its place is there {source.count(bug.old)} times")
            continue
        module.write_text(source.replace(bug.old, bug.new), encoding="utf-8")
        caught, words = _run(tree, bug, seed)
        outcome.add("bugs planted")
        outcome.add("caught", caught)
        outcome.expect(caught, f"{name}: not caught by {bug.campaign}: {words}")
        shutil.rmtree(tree)
    return outcome


def _run(tree, bug, seed):
    """Whether the campaign found a breach in the copy; and what it said."""
    command = [
        sys.executable,
        tree / "tests/chaos/chaos.py",
        "--only",
        bug.campaign,
        "--seed",
        str(seed),
        "--count",
        str(bug.count),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    environment["PYTHONPATH"] = f"{tree}:{tree}/tests/support:{tree}/tests/chaos"
    done = subprocess.run(
        command, cwd=tree, env=environment | ({"CHAOS_NAMES": bug.names} if bug.names else {}), capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    try:
        outcome = json.loads(done.stdout.strip().splitlines()[-1])
        return bool(outcome["problems"]), str(outcome)[:300]
    except (ValueError, IndexError):
        broken = any(
            words in done.stderr
            for words in ("danbooru_index.errors", "the undisturbed build ended")
        )
        return broken, done.stderr[-600:]
