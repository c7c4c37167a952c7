"""What is installed: plain exact pins, ranges that admit every supported Python, the top level as
designed.
"""

import copy
import re
import subprocess
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

from danbooru_index import versions

SECRET = re.compile(r"(hf_|AKIA)[A-Za-z0-9]{10}")
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
FLOORS = {
    name: tuple(int(part) for part in floor.split(".")[:2])
    for name, (floor, _) in versions.FLOORS.items()
}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_are_plain_versions():
    for line in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line
    assert "torch==2.13.0" in PINS


def test_everything_that_is_needed_is_pinned_at_the_version_installed():
    """All dependencies, and theirs, and so on."""
    from packaging.requirements import Requirement

    pins = {normal(line.split("==")[0]): line.split("==")[1] for line in PINS}
    installed = {normal(d.metadata["Name"]): d for d in distributions()}
    extras = [need for group in PROJECT["optional-dependencies"].values() for need in group]
    waiting, seen = [Requirement(need) for need in [*PROJECT["dependencies"], *extras]], set()
    while waiting:
        need = waiting.pop()
        name = normal(need.name)
        if (name, *sorted(need.extras)) in seen or name not in installed:
            continue
        seen.add((name, *sorted(need.extras)))
        assert pins.get(name) == installed[name].version.split("+")[0], name
        for text in installed[name].requires or []:
            inner = Requirement(text)
            if not inner.marker or any(
                inner.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)
            ):
                waiting.append(inner)
    assert len({name for name, *_ in seen}) > 80


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_security_floors(name, floor):
    pins = {normal(line.split("==")[0]): line.split("==")[1] for line in PINS}
    assert tuple(int(part) for part in pins[normal(name)].split(".")[:2]) >= floor
    requirement = next(
        need for need in PROJECT["dependencies"] if normal(need).startswith(normal(name))
    )
    lowest = re.search(r">=([0-9.]+)", requirement).group(1)
    assert tuple(int(part) for part in lowest.split(".")[:2]) >= floor


def test_python_3_11_to_3_13_are_admitted():
    from packaging.specifiers import SpecifierSet

    for version in ("3.11", "3.12", "3.13"):
        assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert not SpecifierSet(PROJECT["requires-python"]).contains("3.10")
    for need in PROJECT["dependencies"]:
        assert "python_version" not in need


def test_the_example_cluster_is_valid_for_ray_and_holds_no_secret():
    """By Ray's own functions, which `ray up` calls before it asks a cloud for anything."""
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    cluster = yaml.safe_load(text)
    validate_config(prepare_config(copy.deepcopy(cluster)))
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"]["CPU"] == 0
    gpus = [kind for kind in types.values() if kind["resources"].get("GPU")]
    assert [kind["min_workers"] for kind in gpus] == [0, 0]
    assert all(kind["max_workers"] > 1 for kind in gpus)
    markets = [kind["node_config"].get("InstanceMarketOptions") for kind in gpus]
    assert markets == [{"MarketType": "spot"}, None]
    assert f"rayproject/ray:{pinned('ray')}-py312-gpu" == cluster["docker"]["image"]
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in start for start in starts if "ray start" in start)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert not SECRET.search(text)


def pinned(package):
    return re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]


def test_the_top_level_is_as_designed():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {name.split("/")[0] for name in listed}
    usual = {
        "Makefile",
        "constraints.txt",
        "LICENSE",
        "CHANGELOG.md",
        "BENCHMARKS.md",
        "README.zh-CN.md",
        ".ci",
    }
    fixed = {"pyproject.toml", "jobs", "danbooru_index", "cluster.yaml", "tests", "README.md"}
    assert fixed <= top
    assert {name for name in top - fixed - usual if not name.startswith(".")} == set()
