"""Disks that fail: writes that do not fit, injected errors, power loss at any moment, rot. The real
storage code.

A power loss is modelled from a system-call trace of the real process: a file is what was in it at
its last fsync (or cut somewhere after), a folder what it held at its last fsync (and any number of
the changes since, in their order).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import vault
from faults import SUPPORT, Outcome, chance_of, compare, contents, finish, kill, said, start

from danbooru_index.errors import StorageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.status import verify

SHARDS = 3
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf"]


def vault_command(index: Path, model: str, *options: object) -> list:
    return [
        sys.executable,
        SUPPORT / "vault.py",
        index,
        "--shards",
        SHARDS,
        "--model",
        model,
        *options,
    ]


# ---- failed writes ----

INJECTED = {
    "write": ("ENOSPC", "EIO"), "pwrite64": ("ENOSPC", "EIO"), "fsync": ("EIO", "ENOSPC"), "link": ("EIO", "ENOSPC"),
    "linkat": ("EIO",), "rename": ("EIO", "ENOSPC"), "mkdir": ("ENOSPC",), "close": ("EIO",), "unlink": ("EIO",),
    "ftruncate": ("EIO",), "openat": ("ENOSPC", "EMFILE"), "statx": ("EIO",), "pread64": ("EIO",),
}  # fmt: skip


def failed_writes(seed: int, count: int, folder: Path) -> Outcome:
    """Limits on the size of files, a disk that is full, and errors of single system calls,
    in turn.
    """
    outcome = Outcome()
    base = folder / "base"
    vault.build(base, vault.shard_names(SHARDS), model="a")
    expected = {}
    for model in "ab":
        vault.build(folder / model, vault.shard_names(SHARDS), model=model)
        expected[model] = contents(folder / model)
    kinds = [_file_limit, _full_disk, _injected]
    for number in range(count):
        chance = chance_of(seed, "failed-writes", number)
        kinds[number % len(kinds)](
            outcome, folder / f"case{number}", base, expected, chance, number
        )
        shutil.rmtree(folder / f"case{number}", ignore_errors=True)
    return outcome


def _judge(outcome, index, process, code, expected, case, *, mute=False, room=None):
    """Exit 0 means whole; anything else one line, the old generation still there, and the same
    command goes on.
    """
    words = said(process)
    outcome.add("points")
    if code == 0:
        outcome.add("written all the same")
        outcome.problems += [
            f"{case}: exit 0, but {problem}" for problem in compare(index, expected["b"])
        ]
        return
    outcome.add("refused")
    outcome.expect(code == 1 or mute, f"{case}: exit {code}: {words[-300:]}")
    lines = words.splitlines()
    if any("panicked at" in line for line in lines):
        # Rust reports a panic on stderr by itself; the last line is ours
        outcome.add("panics of Lance")
        lines = lines[-1:]
    said_it = len(lines) == 1 and lines[0].startswith("danbooru-index: "[:room])
    outcome.expect(said_it or mute, f"{case}: {words[-600:]}")
    current = IndexRoot(index).current().manifest.model.id[0]
    outcome.problems += [
        f"{case}, then: {problem}" for problem in compare(index, expected[current])
    ]
    again = start(vault_command(index, "b"))
    outcome.expect(finish(again) == 0, f"{case}: does not go on: {said(again)[-300:]}")
    outcome.problems += [f"{case}, gone on: {problem}" for problem in compare(index, expected["b"])]


def _file_limit(outcome, place, base, expected, chance, number):
    shutil.copytree(base, place)
    limit = chance.randrange(1, 14_000)
    process = start(vault_command(place, "b", "--file-limit", limit))
    code = finish(process)
    outcome.add("of file size")
    # stderr is a file too: of the line there is as much as fits.
    _judge(
        outcome,
        place,
        process,
        code,
        expected,
        f"point {number}, files of at most {limit} bytes",
        room=limit,
    )


def _full_disk(outcome, place, base, expected, chance, number):
    size = 4096 * chance.randrange(1, 60)
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={4 << 20}", "tmpfs", place], capture_output=True
    )
    if mounted.returncode != 0:
        outcome.add("no right to mount a tmpfs: file size instead")
        place.rmdir()
        _file_limit(outcome, place, base, expected, chance, number)
        return
    try:
        index = Path(shutil.copytree(base, place / "index"))
        ballast = place / "ballast"
        status = os.statvfs(place)
        ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - size)))
        process = start(vault_command(index, "b"))
        code = finish(process)
        ballast.unlink()
        outcome.add("of full disk")
        _judge(outcome, index, process, code, expected, f"point {number}, {size} bytes free")
    finally:
        subprocess.run(["umount", place], check=False)


def _injected(outcome, place, base, expected, chance, number):
    shutil.copytree(base, place)
    call = chance.choice(list(INJECTED))
    error, when = chance.choice(INJECTED[call]), chance.randrange(1, 25)
    if chance.random() < 0.2:
        when = f"{when}+"
    gate = place.with_name(f"{place.name}.gate")
    process = start(vault_command(place, "b", "--wait", gate))
    while not gate.exists():
        time.sleep(0.005)
    tracer = start(
        [
            *STRACE[:3],
            "-o",
            "/dev/null",
            "-p",
            process.pid,
            "-e",
            f"inject={call}:error={error}:when={when}",
        ]
    )
    _wait_until_traced(process.pid)
    gate.unlink()
    code = finish(process)
    kill(tracer.pid)
    tracer.wait()
    outcome.add("of injected errors")
    # Where no write works any more, none to stderr does; and where the threads of Lance cannot wake
    # each other it aborts.
    aborted = code == -signal.SIGABRT and "non-unwinding panic" in process.err.read_text(
        errors="replace"
    )
    outcome.add("aborts of Lance", aborted)
    mute = call == "write" and (str(when).endswith("+") or aborted)
    _judge(
        outcome,
        place,
        process,
        code,
        expected,
        f"point {number}, {call} {when} gives {error}",
        mute=mute,
    )


def _wait_until_traced(pid):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if re.search(r"TracerPid:\s+[1-9]", Path(f"/proc/{pid}/status").read_text()):
                time.sleep(0.05)
                return
        time.sleep(0.01)
    raise RuntimeError("strace did not attach")


# ---- power loss ----

CALLS = "openat,creat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,ftruncate,rmdir,close,copy_file_range,sendfile,fallocate"


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


@dataclass
class Folder:
    entries: dict = field(default_factory=dict)
    durable: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)

    def change(self, changes: dict) -> None:
        """`changes`: name -> node, or None where the name goes; all at once."""
        self.pending.append(changes)
        _apply(self.entries, changes)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.entries), []


def _apply(entries, changes):
    for name, node in changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class Disk:
    """What a folder holds for the running system, and what of it a power loss would leave."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.tree = self._load(root)
        self._open: dict[tuple[str, int], File] = {}

    def _load(self, path):
        if path.is_file():
            content = path.read_bytes()
            return File(bytearray(content), content)
        nodes = {child.name: self._load(child) for child in path.iterdir()} if path.is_dir() else {}
        return Folder(nodes, dict(nodes))

    def find(self, path):
        node = self.tree
        for part in [part for part in path.removeprefix(self.root).split("/") if part]:
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node

    def parent(self, path):
        return self.find(path.rpartition("/")[0]), path.rpartition("/")[2]

    def inside(self, path):
        return path == self.root or path.startswith(self.root + "/")

    def step(self, call: str, arguments: str) -> None:
        """One successful system call."""
        paths = re.findall(r'(?<!<)"((?:[^"\\]|\\.)*)"', arguments)
        named = re.findall(r"<([^<>]*)>", arguments)
        if call in ("openat", "creat"):
            path = _text(paths[0])
            if self.inside(path) and "O_CREAT" in arguments:
                folder, name = self.parent(path)
                if name not in folder.entries:
                    folder.change({name: File()})
                elif "O_TRUNC" in arguments:
                    del folder.entries[name].data[:]
        elif call in ("write", "pwrite64"):
            path = _text(named[0]) if named else ""
            if self.inside(path) and isinstance(node := self.find(path), File):
                content = _bytes(paths[0])
                if call == "pwrite64":
                    at = int(arguments.rstrip(")").rsplit(",", 1)[1])
                    node.data[at : at + len(content)] = content
                else:
                    node.data += content
        elif call in ("fsync", "fdatasync"):
            node = self.find(_text(named[0])) if self.inside(_text(named[0])) else None
            if isinstance(node, Folder):
                node.sync()
            elif node is not None:
                node.durable = bytes(node.data)
        elif call == "ftruncate":
            if self.inside(_text(named[0])) and isinstance(
                node := self.find(_text(named[0])), File
            ):
                size = int(arguments.rstrip(")").rsplit(",", 1)[1])
                node.data[:] = node.data[:size].ljust(size, b"\0")
        elif call.startswith(("rename", "link")):
            self._move(_text(paths[0]), _text(paths[1]), keep=call.startswith("link"))
        elif call in ("unlink", "unlinkat", "rmdir"):
            path = _resolve(paths, named)
            if self.inside(path):
                folder, name = self.parent(path)
                folder.change({name: None})
        elif call in ("mkdir", "mkdirat"):
            path = _text(paths[0])
            if self.inside(path):
                folder, name = self.parent(path)
                folder.change({name: Folder()})
        elif (
            call in ("writev", "copy_file_range", "sendfile", "fallocate")
            and named
            and self.inside(_text(named[0]))
        ):
            raise RuntimeError(f"the model of the disk does not know {call}")

    def _move(self, old, new, keep):
        if not self.inside(new):
            return
        source, name = self.parent(old)
        target, new_name = self.parent(new)
        node = source.entries[name]
        if source is target:
            source.change({new_name: node} if keep else {name: None, new_name: node})
        else:
            target.change({new_name: node})
            if not keep:
                source.change({name: None})

    def write(self, place: Path, node=None) -> None:
        """The folder as the running system sees it."""
        node = node or self.tree
        place.mkdir(parents=True, exist_ok=True)
        for name, child in node.entries.items():
            if isinstance(child, Folder):
                self.write(place / name, child)
            else:
                (place / name).write_bytes(child.data)

    def crash(self, place: Path, chance, node=None) -> None:
        """The folder as a power loss now may leave it."""
        node = node or self.tree
        place.mkdir(parents=True, exist_ok=True)
        entries = dict(node.durable)
        lasting = chance.choice([0, len(node.pending), chance.randint(0, len(node.pending))])
        for changes in node.pending[:lasting]:
            _apply(entries, changes)
        for name, child in entries.items():
            if isinstance(child, Folder):
                self.crash(place / name, chance, child)
            else:
                (place / name).write_bytes(_left(child, chance))


def _left(file, chance):
    """The content of a file after the loss: what was synced, or more of it, or zeros where its
    blocks never came.
    """
    if bytes(file.data) == file.durable:
        return file.durable
    kind = chance.random()
    if kind < 0.6:
        return file.durable
    if kind < 0.8:
        return bytes(file.data[: chance.randint(0, len(file.data))])
    return file.durable.ljust(len(file.data), b"\0")


def _bytes(text):
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text):
    return os.fsdecode(_bytes(text)) if text.startswith("\\x") else text


def _resolve(paths, named):
    path = _text(paths[0])
    return path if path.startswith("/") else f"{_text(named[0])}/{path}"


LINE = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)$")


def read_trace(path: Path):
    """(system call, its arguments) for each that succeeded, in the order in which they ended."""
    begun: dict[str, str] = {}
    for raw in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        found = LINE.match(raw)
        if not found:
            continue
        thread, call, rest = found.groups()
        if rest.endswith("<unfinished ...>"):
            begun[thread] = rest.removesuffix("<unfinished ...>")
            continue
        if "resumed>" in raw[:60]:
            rest = begun.pop(thread, "") + rest
        arguments, _, result = rest.rpartition(" = ")
        if re.match(r"-1 ", result) or not result:
            continue
        yield call, arguments


def _hex(text):
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


YOUNG = tuple(_hex(name) for name in ("_versions", "_transactions", "CURRENT.json"))


def power_loss(seed: int, count: int, folder: Path) -> Outcome:
    """Crash states of two builds over a published index, at random moments; each must open, be
    whole, and go on. The second uses the vectors of the first again.
    """
    outcome = Outcome()
    index, trace = folder / "index", folder / "trace"
    vault.build(index, vault.shard_names(SHARDS), model="a")
    disk = Disk(index)
    expected = {"a": contents(index)}
    steps = []
    for model in "bc":
        command = vault_command(index, model, *(["--keep", 2, "--reuse"] if model == "c" else []))
        traced = start(
            [*STRACE, "-xx", "-y", "-s", "10000000", "-e", f"trace={CALLS}", "-o", trace, *command]
        )
        if finish(traced) != 0:
            raise RuntimeError(said(traced)[-1000:])
        expected[model] = contents(index)
        steps += [(call, arguments) for call, arguments in read_trace(trace) if str(index).encode().hex() in
                  arguments.replace("\\x", "")]  # fmt: skip
    _crash_everywhere(outcome, seed, count, folder, disk, steps, expected)
    disk.write(folder / "replayed")
    outcome.expect(
        _tree(folder / "replayed") == _tree(index), "the model of the disk differs from the disk"
    )
    return outcome


def _tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _crash_everywhere(outcome, seed, count, folder, disk, steps, expected):
    # Half of the moments anywhere, half around the commits and publishes, where Lance's own files
    # are young.
    young = [n for n, (_, words) in enumerate(steps) if any(mark in words for mark in YOUNG)]
    chance = chance_of(seed, "power-loss")
    moments = sorted(
        chance.choices(range(len(steps)), k=count - count // 2)
        + chance.choices(young, k=count // 2)
    )
    published, number = "a", 0
    for at, (call, arguments) in enumerate(steps):
        while number < len(moments) and moments[number] == at:
            place = folder / f"crash{number}"
            disk.crash(place, chance_of(seed, "power-loss", number))
            _judge_crash(
                outcome, place, published, expected, f"state {number}, before step {at} ({call})"
            )
            shutil.rmtree(place)
            number += 1
        disk.step(call, arguments)
        if call == "fsync" and disk.find(disk.root).pending == []:
            published = _published(disk) or published
    outcome.add("system calls replayed", len(steps))


def _published(disk):
    """The model of the generation that CURRENT.json names, once that is durable."""
    current = json.loads(bytes(disk.tree.durable["CURRENT.json"].durable) or b"{}")
    if not current:
        return None
    manifest = disk.find(f"{disk.root}/generations/{current['generation']}/manifest.json")
    return json.loads(manifest.durable)["model"]["id"][0]


def _judge_crash(outcome, place, published, expected, case):
    outcome.add("states")
    try:
        current = IndexRoot(place).current().manifest.model.id[0]
    except StorageError as error:
        outcome.problems.append(f"{case}: generation {published} does not open: {error}")
        return
    outcome.expect(
        current >= published, f"{case}: generation {published} was published, {current} is there"
    )
    outcome.add("states where a publish was under way", current > published)
    outcome.problems += [f"{case}: {problem}" for problem in compare(place, expected[current])]
    following = chr(ord(current) + 1) if current < "c" else current
    try:
        vault.build(place, vault.shard_names(SHARDS), model=following, reuse=following == "c")
        outcome.problems += [
            f"{case}, gone on: {problem}" for problem in compare(place, expected[following])
        ]
    except Exception as error:
        outcome.problems.append(f"{case}: cannot go on: {type(error).__name__}: {error}")


# ---- rot ----


def rot(seed: int, count: int, folder: Path) -> Outcome:
    """One flipped bit, or a file cut short, in any file of a published generation: `verify` must
    name that file.
    """
    outcome = Outcome()
    index = folder / "index"
    vault.build(index, vault.shard_names(SHARDS), model="a")
    outcome.expect(not verify(str(index)).problems, "an index that is whole does not pass")
    files = sorted(p for p in index.rglob("*") if p.is_file() and p.name != ".owner.lock")
    for number in range(count):
        chance = chance_of(seed, "rot", number)
        path = files[number % len(files)]
        content = path.read_bytes()
        damaged = bytearray(content)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(content)) :]
        else:
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            said_of = verify(str(index)).problems
        except StorageError as error:
            said_of = [str(error)]
        path.write_bytes(content)
        outcome.add("damages")
        outcome.add(f"in {path.suffix or path.name} files")
        name = path.relative_to(index)
        outcome.expect(
            any(path.name in problem for problem in said_of),
            f"{number}: {name} not noticed: {said_of}",
        )
    outcome.expect(not verify(str(index)).problems, "after all repairs the index does not pass")
    return outcome
