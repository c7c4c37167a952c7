"""The documentation, tested as code: every command parses, and the walk-through runs as it
stands.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import bare_environment

from danbooru_index.cli.entry import make_parser

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh-CN.md"]


def blocks(name, kind):
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(name):
    """Every command line of the shell blocks, comments and pipes taken off."""
    for block in [*blocks(name, "sh run"), *blocks(name, "sh"), *blocks(name, "cron")]:
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.mark.parametrize("name", READMES)
def test_every_command_of_the_readme_parses(name):
    seen = set()
    for words in commands(name):
        for place, word in enumerate(words):
            if word.endswith("danbooru-index"):
                arguments = words[place + 1 :]
            elif word in (
                "jobs/build.py",
                "jobs/rebuild.py",
                "jobs/benchmark.py",
                "jobs/finetune.py",
            ):
                arguments = [Path(word).stem, *words[place + 1 :]]
            else:
                continue
            arguments = arguments[: arguments.index(">>")] if ">>" in arguments else arguments
            assert make_parser().parse_args(arguments).command
            seen.add(arguments[0])
    assert seen == {
        "prepare",
        "build",
        "rebuild",
        "search",
        "status",
        "verify",
        "rollback",
        "prune",
        "benchmark",
        "evaluate",
        "finetune",
        "doctor",
    }


def test_both_readmes_hold_the_same_commands():
    first, second = (list(commands(name)) for name in READMES)
    assert first == second


@pytest.mark.parametrize("name", READMES)
def test_what_the_readme_names_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    options = set(re.findall(r"`(--[a-z-]+)", text))
    verbs = next(iter(make_parser()._subparsers._group_actions)).choices.values()
    known = {option for verb in verbs for option in verb._option_string_actions}
    assert options <= known
    for room in (ROOT / "danbooru_index").glob("*/__init__.py"):
        assert f"      {room.parent.name}/" in text, room


@pytest.mark.ray
@pytest.mark.slow
def test_the_walk_through_runs_as_it_stands(tmp_path):
    """In a copy of the files it names, with this environment's commands first in the PATH, and
    nothing else set.
    """
    (tmp_path / "danbooru_index").mkdir()
    shutil.copy(ROOT / "danbooru_index" / "sample_tags.jsonl", tmp_path / "danbooru_index")
    (block,) = blocks("README.md", "sh run")
    env = bare_environment(tmp_path) | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "468 in each of the three tables" in done.stdout
    assert "every table is whole" in done.stdout
    assert done.stdout.count('"query"') == 2
    assert "Traceback" not in done.stderr
    (python,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-P", "-c", python],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(done.stdout.splitlines()) == 5, done.stderr
