"""What the tests of several nodes build."""

import pytest
from faults import contents, light_build, make_workbench
from head import head_node_with_jobs
from processes import running


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """The sample twice, in 78 shards of 12 records."""
    return make_workbench(tmp_path_factory.mktemp("bench"), copies=2)


@pytest.fixture(scope="session")
def expected(bench):
    """What an undisturbed build on one machine makes of it."""
    with running([str(word) for word in light_build(bench, bench.index("undisturbed"))]) as process:
        _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return contents(bench.index("undisturbed"))


@pytest.fixture(scope="session")
def head():
    with head_node_with_jobs() as made:
        yield made
