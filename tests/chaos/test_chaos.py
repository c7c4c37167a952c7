"""The chaos campaigns at reduced size; `make chaos` runs them in full. Each in a process that owns
all it starts.
"""

import pytest
from chaos import CAMPAIGNS, ROOT, run_apart

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REDUCED = [name for name, campaign in CAMPAIGNS.items() if campaign.reduced]
REGRESSIONS: list[tuple[str, int, int]] = []  # (campaign, seed, count) of cases that once failed


@pytest.mark.long
@pytest.mark.parametrize("name", REDUCED)
def test_a_promise_holds_under_faults(name):
    outcome = run_apart(name, 0, CAMPAIGNS[name].reduced)
    assert outcome["problems"] == []
    assert sum(outcome["counts"].values()) > 0


@pytest.mark.parametrize(("name", "seed", "count"), REGRESSIONS)
def test_a_case_that_once_failed(name, seed, count):
    assert run_apart(name, seed, count)["problems"] == []


def test_every_campaign_can_be_loaded_and_is_full_size_where_the_promise_has_a_figure():
    least = {
        "kills": 200,
        "kills-real": 10,
        "kills-ray": 30,
        "failpoints": 3,
        "nodes": 20,
        "failed-writes": 100,
        "power-loss": 50,
    }
    least |= {
        "rot": 200,
        "owners": 100,
        "commits": 100,
        "publishes": 1000,
        "never-mixed": 20,
        "stops": 20,
    }
    least |= {"bad-input": 1000, "hostile": 30, "filters": 10_000}
    for name, figure in least.items():
        assert CAMPAIGNS[name].full >= figure
        assert callable(CAMPAIGNS[name].load())


def test_every_planted_bug_has_its_place_in_the_code():
    from campaign_teeth import BUGS

    for name, bug in BUGS.items():
        source = (ROOT / "danbooru_index" / f"{bug.module}.py").read_text(encoding="utf-8")
        assert source.count(bug.old) == 1, name
