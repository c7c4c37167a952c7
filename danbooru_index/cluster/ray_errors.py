"""What an error of Ray means to who runs a job, in one line."""

from __future__ import annotations

import re

from danbooru_index.errors import first_line, in_one_line

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(r"[A-Za-z_.]+(Error|Exception|Exit|Interrupt)\b")


def worker_problem(error: BaseException) -> str:
    """Why a worker cannot run the job: what its code raised, else all that Ray says."""
    said = _raised_there(error) or in_one_line(RuntimeError(_without_colours(error)))
    return f"a worker of this cluster cannot run the job: {said}"


def ray_problem(error: BaseException) -> str:
    """`worker_problem` where that is why a running job ended; else that Ray went away."""
    first = _without_colours(error).splitlines()[0]
    if _raised_there(error) or "runtime_env" in first or "runtime environment" in first:
        return worker_problem(error)
    return f"Ray went away ({first_line(RuntimeError(first))})"


def _without_colours(error: BaseException) -> str:
    """What an error says, without colours; its kind where it says nothing."""
    return COLOUR.sub("", str(error)).strip() or type(error).__name__


def _raised_there(error: BaseException) -> str:
    """The last line of a worker's traceback, and where that was; empty where there is none."""
    first, *rest = _without_colours(error).splitlines()
    if not rest or not RAISED.match(rest[-1]):
        return ""
    where = re.search(r"\bip=([0-9a-f.:]+)", first)
    return rest[-1][:300] + (f" (on {where[1]})" if where else "")
