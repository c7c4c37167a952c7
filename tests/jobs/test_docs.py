"""The documentation, tested as code: every command parses, and the walk-through runs as it
stands.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import bare_environment

from danbooru_index.choices import Device
from danbooru_index.cli.entry import make_parser
from danbooru_index.search.tag_index import TagIndex

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "README.zh-CN.md"]
CHAPTERS = [
    "danbooru_index/README.md",
    "danbooru_index/ingest/README.md",
    "danbooru_index/training/README.md",
    "jobs/README.md",
    "tests/README.md",
]


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


def arguments_of(words):
    """The words of a command line of ours, its verb first; nothing for another program's."""
    for place, word in enumerate(words):
        script = re.fullmatch(r"jobs/(build|rebuild|benchmark|finetune)\.py", word)
        if word.endswith("danbooru-index") or script:
            given = ([script[1]] if script else []) + words[place + 1 :]
            return given[: given.index(">>")] if ">>" in given else given
    return []


def test_every_command_of_every_readme_parses():
    """The chapters together show every verb."""
    seen = set()
    for name in [*READMES, *CHAPTERS]:
        for words in commands(name):
            if arguments := arguments_of(words):
                assert make_parser().parse_args(arguments).command
                seen.add(arguments[0])
    verbs = next(iter(make_parser()._subparsers._group_actions)).choices
    assert seen | {"doctor"} == set(verbs)
    assert "`danbooru-index doctor`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*READMES, *CHAPTERS])
def test_the_environment_is_active_before_the_first_command(name):
    """`.venv/bin/`, or its activation, stands above the first `danbooru-index` of a shell block."""
    shell = "".join(blocks(name, r"sh(?: run)?"))
    if "danbooru-index " in shell:
        assert ".venv/bin/" in shell[: shell.index("danbooru-index ")]


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_one_screen_and_its_chapters(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.encode()) <= 8192
    for chapter in CHAPTERS:
        assert f"({chapter})" in text


def test_both_readmes_hold_the_same_commands():
    first, second = (list(commands(name)) for name in READMES)
    assert first == second


@pytest.mark.parametrize("name", [*READMES, *CHAPTERS])
def test_what_a_readme_names_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)|^ +make ([\w-]+)", text, re.MULTILINE):
        target = "".join(target)
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link
    options = set(re.findall(r"`(--[a-z-]+)", text))
    verbs = next(iter(make_parser()._subparsers._group_actions)).choices.values()
    known = {option for verb in verbs for option in verb._option_string_actions}
    assert options <= known


@pytest.mark.parametrize("name", [*READMES, "danbooru_index/README.md"])
def test_every_room_is_named(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for room in (ROOT / "danbooru_index").glob("*/__init__.py"):
        assert re.search(rf"^(?: +|\| ){room.parent.name}[/ ]", text, re.MULTILINE), room


def run_block(name, tmp_path):
    """Run the `sh run` block of a chapter where its files are, with this environment as `.venv`."""
    (tmp_path / "danbooru_index").mkdir()
    shutil.copy(ROOT / "danbooru_index" / "sample_tags.jsonl", tmp_path / "danbooru_index")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (block,) = blocks(name, "sh run")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.ray
@pytest.mark.slow
def test_the_walk_through_runs_as_it_stands(tmp_path):
    done = run_block("README.md", tmp_path)
    assert "468 in each of the three tables" in done.stdout
    assert "every table is whole" in done.stdout
    assert done.stdout.count('"query"') == 2
    (python,) = blocks("README.md", "python")
    assert len(run_python(python, tmp_path).splitlines()) == 5
    (plain,) = blocks("danbooru_index/README.md", "python")
    lines = [line.split() for line in run_python(plain, tmp_path).splitlines()]
    with TagIndex.open(tmp_path / "data" / "my-index", device=Device.CPU) as index:
        for mode, found in (("dense", lines[:3]), ("colbert", lines[3:])):
            hits = index.search("穿水手服的女孩", mode=mode, limit=3, nsfw=True)
            assert [hit.id for hit in hits] == [line[0] for line in found]
            scores = [float(line[-1]) for line in found]
            assert [hit.score for hit in hits] == pytest.approx(scores, abs=2e-3)


def run_python(code, folder):
    """What a program of a README prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        env=bare_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.release
@pytest.mark.ray
@pytest.mark.slow
def test_the_walk_through_of_builds_runs_as_it_stands(tmp_path):
    """A projected build, two rebuilds, back to the first, and what may go pruned."""
    done = run_block("jobs/README.md", tmp_path)
    assert "64 values" in done.stdout
    assert done.stdout.count("468 in each of the three tables") == 3
    assert re.search(r"generation g000001-\w+ is published", done.stdout)


@pytest.mark.parametrize("name", [*READMES, *CHAPTERS])
def test_every_block_ends(name):
    assert (ROOT / name).read_text(encoding="utf-8").count("```") % 2 == 0


def test_benchmarks_is_one_table_of_short_cells():
    text = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert max(len(cell.strip()) for row in rows for cell in row.split("|")) <= 60
    assert len(text.encode()) <= 6 * 1024


def test_the_changelog_has_a_line_a_change():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE)[:3] == ["Added", "Changed", "Fixed"]
    assert all(
        line.startswith(("- ", "#")) and len(line) <= 120 for line in text.splitlines() if line
    )
