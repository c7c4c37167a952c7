"""Errors of Ray in one line: texts as Ray 2.60 gives them."""

import pytest

from danbooru_index.cluster.ray_errors import ray_problem, worker_problem

CREATION = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::MapWorker"
    "(MapBatches(TokenizeShard)).__init__()\x1b[39m (pid=26093, ip=192.0.2.2, actor_id=51f5)\n"
    '  File "/job/light.py", line 5, in __init__\n    import lance\n'
    "ModuleNotFoundError: No module named 'lance'"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            CREATION,
            "a worker of this cluster cannot run the job: ModuleNotFoundError: No module named"
            " 'lance' (on 192.0.2.2)",
        ),
        (
            "Failed to set up runtime environment.\nCould not create the actor because its\nERROR:"
            " No matching distribution found for tiny-extra",
            "a worker of this cluster cannot run the job: Failed to set up runtime environment."
            " Could not create the actor because its ERROR: No matching distribution found for"
            " tiny-extra",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: A",
            "Ray went away (The actor died unexpectedly before finishing this task.)",
        ),
    ],
)
def test_what_is_said(text, said):
    assert ray_problem(RuntimeError(text)) == said


def test_a_worker_that_ended_before_any_job_ran_is_not_ray_that_went_away():
    """All that Ray says of it is kept, and an error without words has its kind."""
    lost = RuntimeError("The worker died unexpectedly while executing this task.\nCheck its log.")
    assert worker_problem(lost) == (
        "a worker of this cluster cannot run the job: The worker died unexpectedly while executing"
        " this task. Check its log."
    )
    assert worker_problem(RuntimeError(CREATION)) == ray_problem(RuntimeError(CREATION))
    assert ray_problem(RuntimeError("")) == "Ray went away (RuntimeError)"
    assert worker_problem(RuntimeError("")).endswith("cannot run the job: RuntimeError")
