"""What an error of Ray means to who runs a job, in one line."""

from __future__ import annotations

import re

from danbooru_index.errors import first_line, in_one_line

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(r"[A-Za-z_.]+(Error|Exception|Exit|Interrupt)\b")


def ray_problem(error: BaseException) -> str:
    """Why a worker cannot run the job, where its code raised something; else that Ray went away."""
    lines = COLOUR.sub("", str(error)).strip().splitlines()
    if len(lines) > 1 and RAISED.match(lines[-1]):
        where = re.search(r"\bip=([0-9a-f.:]+)", lines[0])
        on = f" (on {where[1]})" if where else ""
        return f"a worker of this cluster cannot run the job: {lines[-1][:300]}{on}"
    if "runtime_env" in lines[0] or "runtime environment" in lines[0]:
        said = in_one_line(RuntimeError("\n".join(lines)))
        return f"a worker of this cluster cannot run the job: {said}"
    return f"Ray went away ({first_line(RuntimeError(lines[0]))})"
